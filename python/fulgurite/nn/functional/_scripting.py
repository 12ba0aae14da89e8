"""What TorchScript needs of functions that return ``out``, or ``(out, lse)`` with return_lse."""

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch._jit_internal import boolean_dispatched


def dispatch_on_return_lse(
    function: Callable[..., Any],
    with_lse: Callable[..., Any],
    without: Callable[..., Any],
    index: int,
) -> None:
    """TorchScript picks by the literal value of return_lse, argument ``index`` of ``function``, as
    torch.nn.functional does.

    (torch._jit_internal.boolean_dispatch would register the same and return a function that
    torch.compile refuses to trace.)
    """
    choice: dict[str, Any] = {
        "if_true": with_lse,
        "if_false": without,
        "index": index,
        "default": False,
        "arg_name": "return_lse",
    }
    boolean_dispatched[function] = choice


def philox_for(dropout_p: float, philox: Optional[Tensor], query: Tensor) -> Optional[Tensor]:
    """The given [seed, offset], or one from torch's default generator where dropout needs it."""
    if dropout_p > 0.0 and philox is None:
        drawn = torch.randint(0, 1 << 62, (2,), dtype=torch.int64, device="cpu")
        return drawn.to(query.device)
    return philox
