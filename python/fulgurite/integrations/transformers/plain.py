"""Linear layers whose weights are read where the released class calls the layer."""

from __future__ import annotations

from typing import Any

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def refuse_hooks(layer: nn.Module, place: str) -> None:
    """Raise for hooks of a layer that is not called."""
    for hooks in HOOKS:
        if len(getattr(layer, hooks)) > 0:
            raise NotImplementedError(f"{place}: expected a layer without hooks, got {hooks}")


def refuse_derived(layer: Any, place: str) -> None:
    """Raise for a layer that computes more than its weight and its bias say.

    A parametrization (``torch.nn.utils.parametrize``) is in the weight that is read.
    """
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        name = type(layer).__qualname__
        raise NotImplementedError(
            f"{place}: expected a plain nn.Linear, got {type(layer).__module__}.{name}: merge the"
            " adapter, or dequantize, or leave this layer as it is released"
        )


def refuse_adapted(layer: Any, place: str, bias: bool = False) -> None:
    """The same for a layer that is not called; its bias raises, too, but where ``bias``."""
    refuse_derived(layer, place)
    refuse_hooks(layer, place)
    if not bias and layer.bias is not None:
        raise NotImplementedError(f"{place}: expected a layer without bias")
