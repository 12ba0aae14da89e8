"""What several test files need: bit equality, threads, scattered tensors, cached references."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing import (
    OPERATORS,
    Operator,
    Sample,
    assert_accurate,
    evaluate,
    to_float64,
)
from fulgurite.testing.backend import current

FULL = os.environ.get("FULGURITE_FULL") == "1"
DEVICE = current().device  # that the operators are tested on
DTYPES = current().dtypes  # with kernels there
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


@cache
def samples_of(name: str, dtype: torch.dtype, seed: int) -> dict[str, Sample]:
    """The sample calls of an operator by name. Shared between tests: nobody may write to them."""
    return {sample.name: sample for sample in OPERATORS[name].samples(dtype, DEVICE, seed)}


@cache
def expected(name: str, dtype: torch.dtype, seed: int, sample: str) -> tuple[Results, Results]:
    """``reference_and_naive`` of a registered sample: the same for every instruction set."""
    return reference_and_naive(OPERATORS[name], samples_of(name, dtype, seed)[sample], dtype)


def reference_and_naive(
    operator: Operator, sample: Sample, dtype: torch.dtype
) -> tuple[Results, Results]:
    """The float64 reference and naive PyTorch in ``dtype``, with gradients.

    On one thread: torch's parallel regions cost more than these small calls where cores are shared.
    """
    naive = operator.naive or operator.reference
    with threads(1):
        wide = sample.map(to_float64)
        return (
            evaluate(operator.reference, operator, wide, cotangent_dtype=dtype),
            evaluate(naive, operator, sample, cotangent_dtype=dtype),
        )


def assert_equals_reference(
    operator: Operator, sample: Sample, dtype: torch.dtype, **options: Any
) -> None:
    """One call of the operator against its reference, by the rule for single cases."""
    actual = evaluate(operator.op, operator, sample, cotangent_dtype=dtype)
    assert_accurate(actual, *reference_and_naive(operator, sample, dtype), dtype, **options)


def forward_backward(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
    cotangents: tuple[Tensor | None, ...],
    **kwargs: Any,
) -> Results:
    """Outputs and gradients for given cotangents; None leaves that output out of the loss."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    outputs = function(*leaves.values(), **kwargs)
    used = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if g is not None]
    grads = torch.autograd.grad(
        [output for output, _ in used],
        list(leaves.values()),
        [cotangent.to(output.dtype) for output, cotangent in used],
        allow_unused=True,
        materialize_grads=True,
    )
    results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return results | {f"grad of {name}": g for name, g in zip(leaves, grads, strict=True)}
