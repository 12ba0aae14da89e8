"""Attention layers whose query and key are rotated by ``rope``, in one pass over each.

The released forward runs as it is, with another ``apply_rotary_pos_emb`` among its globals: nothing
of transformers is patched, and a layer that is not led goes on rotating as before.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import Tensor

from fulgurite.integrations.transformers.classes import PACKAGE, ROTARY
from fulgurite.integrations.transformers.versions import of_transformers
from fulgurite.nn import functional as F

ROTATION = "apply_rotary_pos_emb"


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """(…,D) turned in halves; cos and sin: (…,D), both halves alike, or (…,D/2) as in gpt-oss."""
    half = q.shape[-1] // 2
    cos = cos[..., :half].unsqueeze(unsqueeze_dim)
    sin = sin[..., :half].unsqueeze(unsqueeze_dim)
    return F.rope(q, cos, sin), F.rope(k, cos, sin)


def with_rope(released: type[Any]) -> FunctionType:
    """The forward of a released class, calling the function above."""
    forward = released.forward
    # Without __name__ torch.compile looks names up here, not in the module that has that name.
    names = {k: value for k, value in forward.__globals__.items() if k != "__name__"}
    names[ROTATION] = apply_rotary_pos_emb
    ours = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    ours.__kwdefaults__ = forward.__kwdefaults__
    return ours


def __getattr__(name: str) -> type[Any]:
    """The subclass for a released class: made, with its import, when somebody asks for it."""
    places = {place: released for released, place in ROTARY.items()}
    released = places.get(f"rotary.{name}")
    if released is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file, _, cls = released.removeprefix("transformers.").rpartition(".")
    base = of_transformers(file, cls)
    of_transformers(file, ROTATION)
    about = f":class:`{cls}` with its rotary positions by ``rope``."
    members = {"__module__": f"{PACKAGE}.rotary", "__doc__": about, "forward": with_rope(base)}
    globals()[name] = type(name, (base,), members)
    made: type[Any] = globals()[name]
    return made
