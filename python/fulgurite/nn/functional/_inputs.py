"""What inputs must be before anything is asked of them, and sizes that only data decides."""

from typing import Any

import torch
from torch import Tensor


def check_dense(owner: str, name: str, x: Tensor) -> None:
    """Raise where the shape of a tensor, or its elements, cannot be asked for: as operators do."""
    if x.is_nested:
        raise RuntimeError(f"{owner}: expected {name} dense, got a nested tensor")
    if x.layout != torch.strided:
        raise RuntimeError(f"{owner}: expected {name} of layout strided, got {x.layout}")


def check_float_input(owner: str, name: str, x: Tensor) -> None:
    """Raise unless a module can compute with x: dense, and floating-point."""
    check_dense(owner, name, x)
    if not x.is_floating_point():
        raise TypeError(f"{owner}: expected {name} of a floating-point dtype, got {x.dtype}")


def may_be(condition: bool) -> bool:
    """Whether a condition on sizes holds, or only data can tell: then the operator asserts it."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _decide(condition, True)
    return condition


def is_known(condition: bool) -> bool:
    """Whether a condition on sizes holds whatever the data."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _decide(condition, False)
    return condition


@torch.jit.unused
def _decide(condition: Any, unknown: bool) -> bool:
    """The condition, or ``unknown`` where asking would be a guard on data."""
    if isinstance(condition, bool) and not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true

    return bool(guard_or_true(condition) if unknown else guard_or_false(condition))
