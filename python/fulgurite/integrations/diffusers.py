"""Models of diffusers: attention processors on ``fulgurite::attention``."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

from torch import nn

from fulgurite.integrations._applied import Applied
from fulgurite.integrations._led import Led, can_be_led

__all__ = ["Applied", "AttnProcessor", "set_processor"]

NAME = "fulgurite.integrations.diffusers"


class AttnProcessor:
    """Computes what ``inner`` computes, with its attention by ``fulgurite::attention``.

    Args:
        inner: a processor of diffusers that calls ``scaled_dot_product_attention``.

    Raises:
        NotImplementedError: inner computes its scores itself, calls another library, or has weights
            of its own.
    """

    inner: Any

    def __new__(cls, inner: Any) -> AttnProcessor:
        made: AttnProcessor = object.__new__(_class_of(type(inner)))
        return made

    def __init__(self, inner: Any) -> None:
        name = type(inner).__name__
        if isinstance(inner, nn.Module):
            raise NotImplementedError(f"{NAME}: expected processors without weights, got {name}")
        if not can_be_led(type(inner)):
            raise NotImplementedError(
                f"{NAME}: expected a processor that calls scaled_dot_product_attention, got {name}"
            )
        self.inner = inner

    def __reduce__(self) -> Any:
        return (AttnProcessor, (self.inner,))


_classes: dict[type, type[AttnProcessor]] = {}


def _class_of(inner: type[Any]) -> type[AttnProcessor]:
    """A class whose call has the signature of inner's: diffusers passes on what that names."""

    @functools.wraps(inner.__call__)
    def call(self: AttnProcessor, *args: Any, **kwargs: Any) -> Any:
        with Led():
            return self.inner(*args, **kwargs)

    if inner not in _classes:
        _classes[inner] = type("AttnProcessor", (AttnProcessor,), {"__call__": call})
    return _classes[inner]


def set_processor(model: Any) -> Applied:
    """Replace every attention processor of a model of diffusers by :class:`AttnProcessor`.

    Args:
        model: with ``attn_processors`` and ``set_attn_processor``, such as a pipeline's
            ``transformer`` or ``unet``.

    Returns:
        what was replaced, with ``restore()``. A second call counts the same processors; what either
        returns leads back to the inner ones.

    Raises:
        NotImplementedError: there is no processor, or one whose attention cannot be led here.
        TypeError: not a module; a pipeline is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{NAME}: expected a model, such as a pipeline's transformer or unet, got"
            f" {type(model).__name__}"
        )
    processors: dict[str, Any] = dict(getattr(model, "attn_processors", {}))
    if not processors:
        raise NotImplementedError(
            f"{NAME}: expected a model with attn_processors, got none in {type(model).__name__}"
        )
    led = {
        place: processor if isinstance(processor, AttnProcessor) else AttnProcessor(processor)
        for place, processor in processors.items()
    }
    setter: Any = model.set_attn_processor
    setter(dict(led))
    replaced = dict(Counter(type(processor.inner).__name__ for processor in led.values()))
    return Applied(replaced, [functools.partial(_release, model)])


def _release(model: Any) -> None:
    """Put the inner processors back, but for those that were set since."""
    processors = dict(model.attn_processors)
    released = {
        place: processor.inner if isinstance(processor, AttnProcessor) else processor
        for place, processor in processors.items()
    }
    model.set_attn_processor(released)
