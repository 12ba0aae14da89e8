"""Which compiler traces."""

import torch


def is_exporting() -> bool:
    """Whether torch.export traces: the flag itself, since in torch 2.11 a trace of torch.compile
    takes ``torch.compiler.is_exporting()`` for True too.
    """
    return torch.compiler._is_exporting_flag
