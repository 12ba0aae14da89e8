"""What several test files need: bit equality, threads, scattered tensors, cached references."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from fulgurite.testing import OPERATORS, Sample, evaluate, to_float64

CPU = torch.device("cpu")
Results = dict[str, Tensor]


def assert_same_bits(actual: Results, expected: Results, context: str = "") -> None:
    """Equal labels, dtypes, shapes and bits, NaN and the sign of 0 included."""
    assert actual.keys() == expected.keys(), context
    for label, one in actual.items():
        other = expected[label]
        assert one.dtype == other.dtype, f"{label}: {one.dtype} against {other.dtype} {context}"
        assert one.shape == other.shape, f"{label}: {one.shape} against {other.shape} {context}"
        assert torch.equal(bits(one), bits(other)), (
            f"{label}: bits differ {context}, by up to "
            f"{(one.double() - other.double()).abs().nan_to_num().max().item():.3g}"
        )


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def filler(dtype: torch.dtype) -> float:
    """What stands between the elements of a scattered tensor: NaN where there is one."""
    return float("nan") if dtype.is_floating_point else 1


def scattered(tensor: Tensor) -> Tensor:
    """The same numbers with dims reversed in memory and every other element unused."""
    if tensor.dim() == 0:
        return tensor
    shape = [2 * size + 1 for size in reversed(tensor.shape)]
    buffer = torch.full(shape, filler(tensor.dtype), dtype=tensor.dtype)
    view = buffer[(slice(1, None, 2),) * tensor.dim()].permute(*reversed(range(tensor.dim())))
    return view.copy_(tensor)


def assert_gaps_untouched(view: Tensor) -> None:
    """A scattered tensor that was written still has its filler between the elements."""
    if view.dim() == 0:
        return
    view.fill_(filler(view.dtype))
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    untouched = whole.isnan() if view.is_floating_point() else whole == 1
    assert untouched.all(), f"{int((~untouched).sum())} elements written outside of the tensor"


@lru_cache(maxsize=None)
def samples_of(name: str, dtype: torch.dtype, seed: int) -> dict[str, Sample]:
    """The sample calls of an operator by name. Shared between tests: nobody may write to them."""
    return {sample.name: sample for sample in OPERATORS[name].samples(dtype, CPU, seed)}


@lru_cache(maxsize=None)
def expected(name: str, dtype: torch.dtype, seed: int, sample: str) -> tuple[Results, Results]:
    """The float64 reference and naive PyTorch in ``dtype``; the same for every instruction set."""
    operator = OPERATORS[name]
    call = samples_of(name, dtype, seed)[sample]
    reference = evaluate(
        operator.reference, operator, call.map(to_float64), cotangent_dtype=dtype
    )
    naive = evaluate(operator.naive or operator.reference, operator, call, cotangent_dtype=dtype)
    return reference, naive
