"""``scaled_dot_product_attention`` led to ``fulgurite::attention`` for the code below a point."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fulgurite.integrations._sdpa import scaled_dot_product_attention

# How code calls it: by its name, or by the function of diffusers that looks for a backend.
NAMES = frozenset({"scaled_dot_product_attention", "dispatch_attention_fn"})


class Led(TorchFunctionMode):
    """A context in which torch's function is ours: eager and compiled, of this thread alone."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            func = scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def can_be_led(cls: type) -> bool:
    """Whether a method of the class, or a function within one, calls one of ``NAMES``."""
    methods = (
        vars(base).values() for base in cls.__mro__ if not base.__module__.startswith("torch.")
    )
    return any(
        isinstance(method, FunctionType) and not NAMES.isdisjoint(names_in(method.__code__))
        for of_class in methods
        for method in of_class
    )


def names_in(code: CodeType) -> set[str]:
    """Names that a function and those defined in it refer to."""
    inner = [names_in(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)
