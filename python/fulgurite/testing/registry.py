"""What the tests know of every operator: sample calls, wrong calls, a reference, its properties.

One entry per operator serves every generated check, so a new operator is covered by writing its
samples and its reference, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sample:
    """One call of ``torch.ops.fulgurite.<op>(*args, **kwargs)``."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """The same call with ``function`` applied to every tensor, those in lists included."""
        args = tuple(map_tensors(function, value) for value in self.args)
        kwargs = {key: map_tensors(function, value) for key, value in self.kwargs.items()}
        return Sample(self.name, args, kwargs)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the call, in order."""
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            found += flatten(value)
        return found


@dataclass(frozen=True)
class ErrorSample:
    """A call that raises exactly ``error`` before anything is written.

    The regular expression ``match`` finds something in its message. ``of_contents``: only numbers
    in memory are wrong, which kernels of CUDA leave where they are.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    error: type[Exception]
    match: str
    of_contents: bool = False


@dataclass(frozen=True)
class Operator:
    """An operator as the tests see it.

    Attributes:
        name: the part after ``fulgurite::``.
        samples: ``(dtype, device, seed)`` to 3 to 8 small calls. Names are unique and do not depend
            on the seed; the first two samples serve the framework checks, so those are the typical
            ones, and at least one has a tensor without elements.
        errors: ``device`` to wrong calls.
        reference: the same arguments, floating-point tensors as float64; returns what the operator
            returns, or for a mutating operator the new values of what it writes, as one flat list
            in the order of ``mutates``. Differentiable by autograd where the operator is.
        naive: what plain PyTorch computes in the given dtype, the yardstick of 16- and 32-bit
            errors. None: the reference run in that dtype.
        dtypes: the dtypes that ``samples`` serves.
        differentiable: the arguments that have gradients, by position or keyword.
        mutates: the arguments that are written, a tensor or a list each.
        constants: whether gradients take a part of the result for a constant that finite
            differences see move, so that gradcheck has nothing to say.
        exact: the same bits on every instruction set.
        autocast: "lower" casts float32 to the autocast dtype, "float32" casts 16 bit to float32,
            None leaves everything as it is.
        autocast_args: for "lower", the arguments that are cast. Empty: the differentiable ones.
    """

    name: str
    samples: Callable[[torch.dtype, torch.device, int], Iterator[Sample]]
    errors: Callable[[torch.device], Iterator[ErrorSample]]
    reference: Callable[..., Any]
    naive: Callable[..., Any] | None = None
    dtypes: tuple[torch.dtype, ...] = ALL_DTYPES
    differentiable: tuple[int | str, ...] = ()
    mutates: tuple[int | str, ...] = ()
    constants: bool = False
    exact: bool = False
    autocast: str | None = None
    autocast_args: tuple[int | str, ...] = ()

    @property
    def op(self) -> Any:
        """The registered overload, ``torch.ops.fulgurite.<name>.default``."""
        return getattr(torch.ops.fulgurite, self.name).default


OPERATORS: dict[str, Operator] = {}
"""Every operator by name; ``fulgurite.testing.samples`` fills it, one family after the other."""


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``function`` applied to a tensor, or to each tensor of a list; other values as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return [map_tensors(function, item) for item in value]
    return value


def flatten(value: Any) -> list[Tensor]:
    """The tensors of a result or an argument, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flatten(item)]
    return []


def argument_name(operator: Operator, key: int | str) -> str:
    """The schema's name of an argument given by position or keyword."""
    return key if isinstance(key, str) else str(operator.op._schema.arguments[key].name)


def named(operator: Operator, sample: Sample) -> dict[str, Any]:
    """The arguments of a call by the names that the schema gives them."""
    positional = {argument_name(operator, i): value for i, value in enumerate(sample.args)}
    return positional | sample.kwargs


def labelled(label: str, value: Any) -> dict[str, Tensor]:
    """A tensor under its label; the tensors of a list under numbered labels."""
    if isinstance(value, Tensor):
        return {label: value}
    return {f"{label}[{i}]": tensor for i, tensor in enumerate(flatten(value))}


def select(
    operator: Operator, sample: Sample, keys: tuple[int | str, ...], *, floating: bool = False
) -> dict[str, Tensor]:
    """The tensors of some arguments under readable labels; only floating-point ones if asked."""
    arguments = named(operator, sample)
    found: dict[str, Tensor] = {}
    for key in keys:
        name = argument_name(operator, key)
        found |= labelled(name, arguments.get(name))
    return {k: t for k, t in found.items() if t.is_floating_point() or not floating}


def substitute(operator: Operator, sample: Sample, tensors: dict[str, Tensor]) -> Sample:
    """The same call with other tensors in place of those that ``select`` labelled."""

    def replace(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return tensors.get(name, value)
        if not flatten(value):
            return value
        return [tensors.get(label, tensor) for label, tensor in labelled(name, value).items()]

    args = tuple(replace(argument_name(operator, i), v) for i, v in enumerate(sample.args))
    kwargs = {name: replace(name, value) for name, value in sample.kwargs.items()}
    return Sample(sample.name, args, kwargs)
