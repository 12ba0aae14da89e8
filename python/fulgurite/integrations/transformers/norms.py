"""RMS norms, by ``rms_norm``: a subclass of every class that computes one of ``FORMULAS``.

Nearly every model of transformers has a copy of one of a few classes. What a class computes is told
by the code of its methods; its subclass is made when it is asked for, by pickle too.
"""

from __future__ import annotations

import functools
import inspect
import re
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from fulgurite.integrations.transformers.versions import of_transformers
from fulgurite.nn import functional as F

METHODS = ("_norm", "forward")


def promoted(x: Tensor, weight: Tensor) -> Tensor:
    """In the wider of both dtypes."""
    return x.to(torch.promote_types(x.dtype, weight.dtype))


class Llama:
    """Times a weight, in the wider of both dtypes."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        out = F.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        return promoted(out, self.weight)


class Llama4:
    """The same."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return promoted(F.rms_norm(x, self.weight, self.eps), self.weight)


class GptOss:
    """Times a weight, in x's dtype."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight, self.variance_epsilon)


class Moshi:
    """The same."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


class Gemma:
    """Times 1 + weight, in x's dtype."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps, 1.0)


class Gemma3n:
    """Times a weight if there is one, in x's dtype."""

    weight: Tensor
    eps: float
    with_scale: bool

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight if self.with_scale else None, self.eps)


class T5:
    """Times a weight, in its dtype; beside one of 32 bits nothing is rounded to 16."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = promoted(hidden_states, self.weight)
        return F.rms_norm(x, self.weight, self.variance_epsilon).to(self.weight.dtype)


class NanoChat:
    """No weight, in x's dtype."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, None, self.eps)


# Released classes, and what computes the same.
FORMULAS: dict[str, type] = {
    "llama.LlamaRMSNorm": Llama,
    "t5.T5LayerNorm": T5,
    "gemma.GemmaRMSNorm": Gemma,
    "gpt_oss.GptOssRMSNorm": GptOss,
    "helium.HeliumRMSNorm": GptOss,
    "gemma3n.Gemma3nRMSNorm": Gemma3n,
    "llama4.Llama4TextRMSNorm": Llama4,
    "moshi.MoshiRMSNorm": Moshi,
    "nanochat.NanoChatRMSNorm": NanoChat,
}


def released_class(model: str, name: str) -> Any:
    return of_transformers(f"models.{model}.modeling_{model}", name)


def computation(cls: type) -> list[tuple[bytes, tuple[str, ...], tuple[Any, ...]]]:
    """What the methods do, wherever they stand and whatever their types are called."""
    codes: list[CodeType] = [
        inspect.unwrap(vars(cls)[name]).__code__ for name in METHODS if name in vars(cls)
    ]
    return [(code.co_code, code.co_names, code.co_consts) for code in codes]


@functools.cache
def subclass_of(cls: type) -> Any:
    """The subclass that serves a released class, or None where it computes something else."""
    place = re.fullmatch(r"transformers\.models\.(\w+)\.modeling_\1", cls.__module__)
    if place is None or "forward" not in vars(cls):
        return None
    for formula, served in FORMULAS.items():
        if computation(cls) == computation(released_class(*formula.split("."))):
            name = f"{place[1]}__{cls.__name__}"
            made = type(name, (served, cls), {"__module__": __name__, "__doc__": served.__doc__})
            globals()[name] = made
            return made
    return None


def __getattr__(name: str) -> Any:
    """A subclass by its name, for models that were pickled with it."""
    model, _, released = name.rpartition("__")
    made = subclass_of(released_class(model, released)) if model and released else None
    if made is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return made
