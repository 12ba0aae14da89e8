"""The bytes of real tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fulgurite.memory.usage import Usage


def report(model: nn.Module, optimizer: Optimizer | None = None) -> Usage:
    """What the tensors of a model and its optimizer take now.

    Gradients count where there are some, states after the first step. Works with any optimizer of
    torch's: its states named ``exp_avg…``, ``max_exp_avg…`` and ``momentum…`` are moments, the
    others ``other``. Activations are not here: they live and die within a step.

    Example:
        >>> import torch
        >>> from fulgurite.memory import RECIPES, report
        >>> from fulgurite.optim import AdamW
        >>> model = torch.nn.Linear(300, 300, dtype=torch.bfloat16)
        >>> optimizer = AdamW(model.parameters(), **RECIPES["split-8bit"].options)
        >>> model(torch.ones(1, 300, dtype=torch.bfloat16)).sum().backward()
        >>> optimizer.step()
        >>> used = report(model, optimizer)
        >>> used == RECIPES["split-8bit"].usage(p.numel() for p in model.parameters())
        True
    """
    parameters = list(model.parameters())
    usage = Usage(
        weights=_bytes(parameters),
        gradients=_bytes(p.grad for p in parameters if p.grad is not None),
        other=_bytes(model.buffers()),
    )
    if optimizer is None:
        return usage
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                usage += Usage(**{_part(key): _bytes([value])})
    copies: Any = getattr(optimizer, "_copies", None)
    return usage + Usage(other=_bytes(copies or ()))


def _part(key: str) -> str:
    """The part of the usage that a state belongs to."""
    if key == "master":
        return "masters"
    return "moments" if key.startswith(("exp_avg", "max_exp_avg", "momentum")) else "other"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
