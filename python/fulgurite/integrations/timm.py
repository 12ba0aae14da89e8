"""Models of timm: every module with a ``fused_attn`` flag runs on ``fulgurite::attention``.

timm's Swin asks for its fused path as an experimental one, which is off by default, so that
:mod:`fulgurite.integrations.sdpa` alone would leave it eager.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

from torch import nn

from fulgurite.integrations._applied import Applied
from fulgurite.integrations._led import Led, can_be_led

__all__ = ["Applied", "apply"]

NAME = "fulgurite.integrations.timm"
# Where a led module keeps the flag it was released with.
FLAG = "_fused_attn_before_fulgurite"


def apply(model: nn.Module) -> Applied:
    """Switch the attention of a model of timm to fulgurite, in place.

    Parameters, ``state_dict`` and ``isinstance`` stay; the model can be copied, saved and compiled.
    A second call finds the same modules; what either returns leads back to the released ones.

    Returns:
        what was replaced, with ``restore()``.

    Raises:
        NotImplementedError: no module has the flag (timm's Swin V2 multiplies its matrices itself),
            or one has it and does not call ``scaled_dot_product_attention``.
        TypeError: not a module.

    Example::

        model = timm.create_model("swin_tiny_patch4_window7_224")
        applied = fulgurite.integrations.timm.apply(model)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{NAME}: expected a torch.nn.Module, got {type(model).__name__}")
    flagged = [module for module in model.modules() if hasattr(module, "fused_attn")]
    if not flagged:
        raise NotImplementedError(
            f"{NAME}: expected a module with a fused_attn flag, got none in {type(model).__name__}"
        )
    for module in flagged:
        if not can_be_led(type(module)):
            raise NotImplementedError(
                f"{NAME}: expected scaled_dot_product_attention in {type(module).__name__},"
                " which has a fused_attn flag, got none"
            )
    led: list[Any] = [_lead(module) for module in flagged]
    replaced = dict(Counter(module.released.__name__ for module in led))
    return Applied(replaced, [functools.partial(_release, module) for module in led])


def _lead(module: Any) -> Any:
    if not isinstance(module, LedModule):
        vars(module)[FLAG] = module.fused_attn
        module.__class__, module.fused_attn = led_class(type(module)), True
    return module


def _release(module: Any) -> None:
    if isinstance(module, LedModule):
        cls: Any = module.released
        module.__class__, module.fused_attn = cls, vars(module).pop(FLAG)


class LedModule(nn.Module):
    """Put before a class of timm: what its forward calls is led."""

    released: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Led():
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and files name the released class; this one is made again where they are read."""
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, (self.released,), *reduced[2:])


_led_classes: dict[type[nn.Module], type[nn.Module]] = {}


def led_class(released: type[nn.Module]) -> type[nn.Module]:
    """The class of a replaced module: one for each that was released."""
    if released not in _led_classes:
        made = type(f"Led{released.__name__}", (LedModule, released), {"released": released})
        _led_classes[released] = made
    return _led_classes[released]


def _new(released: type[nn.Module]) -> nn.Module:
    cls = led_class(released)
    return cls.__new__(cls)
