"""When a result is accurate: the error of plain PyTorch in the same dtype is the yardstick.

Against float64, with u the unit roundoff of the dtype:

- 16 bit: the RMS error over at least 16 seeds is at most naive's; every case's largest error is at
  most twice naive's plus u·max|ref|.
- float32: the largest error over the seeds is at most twice naive's plus 4·u·max|ref|. (In a single
  small case naive may be exact by luck.)
- float64: there is no better computation to compare with, so the largest error is at most
  2¹²·u·max(1, max|ref|): a wrong term is far above it, another order of summation far below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SEEDS = 16

# Beside a 16-bit rounding (2⁻⁹ and more) the float32 accumulation is invisible, but where naive
# rounds only once too it decides ties: this much of the RMS of the result is allowed for it.
FLOAT32_NOISE = 2.0**-20


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: 2⁻⁸ for bfloat16, 2⁻¹¹ for float16."""
    return torch.finfo(dtype).eps / 2


def assert_accurate(
    actual: dict[str, Tensor],
    reference: dict[str, Tensor],
    naive: dict[str, Tensor] | None,
    dtype: torch.dtype,
    *,
    magnitude: float = 0.0,
) -> None:
    """Hold every result of one call to the rule for single cases of ``dtype``.

    The three share their labels (see ``evaluate``); ``naive`` is not needed for float64. Integers
    must be equal, and so must infinities and NaN, position by position.

    ``magnitude`` is a lower bound of the max|ref| in the rule, for tiny shapes: the gradient of a
    query with a single key is a difference of equal terms, which naive finds exactly or not at all
    by chance. It is the size of the terms: for normal inputs 1 to √Dv, the size of dO·v.
    """
    assert actual.keys() == reference.keys(), f"{list(actual)} against {list(reference)}"
    for label, expected in reference.items():
        assert_same_kind(label, actual[label], expected)
        if not expected.is_floating_point() or expected.numel() == 0:
            continue
        yardstick = None if naive is None else naive[label]
        size = max(magnitude, largest(finite(expected)))
        allowed = allowed_error(expected, yardstick, dtype, size)
        error = largest(finite_difference(actual[label], expected))
        assert error <= allowed, (
            f"{label}: error {error:.3g}, allowed {allowed:.3g} (max|ref| {size:.3g}, {dtype})"
        )


def allowed_error(
    reference: Tensor, naive: Tensor | None, dtype: torch.dtype, size: float
) -> float:
    """The largest error that the rule allows in a single case where max|ref| is ``size``."""
    u = unit_roundoff(dtype)
    if dtype == torch.float64:
        return 2.0**12 * u * max(1.0, size)
    if naive is None:
        raise AssertionError(f"{dtype} is judged by the naive computation, which is missing")
    naive_error = largest(finite_difference(naive, reference))
    assert math.isfinite(naive_error), f"naive's error of {naive_error} is no yardstick"
    roundoffs = 4.0 if dtype == torch.float32 else 1.0
    return 2 * naive_error + roundoffs * u * size


def assert_same_kind(label: str, actual: Tensor, expected: Tensor) -> None:
    """Equal shapes, equal integers, and NaN and infinities in the same places."""
    assert actual.shape == expected.shape, f"{label}: {actual.shape} against {expected.shape}"
    if not expected.is_floating_point():
        assert torch.equal(actual.to(expected.dtype), expected), (
            f"{label}: {actual.tolist()} is not {expected.tolist()}"
        )
        return
    actual = actual.double()
    strange = ~torch.isfinite(expected)
    wrong = torch.isfinite(actual) == strange
    unequal = (actual != expected) & ~(actual.isnan() & expected.isnan())
    wrong = wrong | (strange & unequal)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{label}: {actual[where].item()} at {where}, expected {expected[where].item()}"
            f" ({int(wrong.sum())} of {wrong.numel()} elements)"
        )


def finite(values: Tensor) -> Tensor:
    """The finite elements, in one row."""
    return values[torch.isfinite(values)]


def finite_difference(actual: Tensor, reference: Tensor) -> Tensor:
    """actual - reference where the reference is finite, in one row."""
    return (actual.double() - reference.double())[torch.isfinite(reference)]


def largest(values: Tensor) -> float:
    """max|values|, 0 if there are none."""
    return float(values.abs().max()) if values.numel() else 0.0


@dataclass
class LabelErrors:
    """Errors of one result over the seeds: sums of squares, and the largest."""

    actual_squares: float = 0.0
    naive_squares: float = 0.0
    reference_squares: float = 0.0
    actual_largest: float = 0.0
    naive_largest: float = 0.0
    reference_largest: float = 0.0

    def add(self, actual: Tensor, reference: Tensor, naive: Tensor) -> None:
        error, naive_error = (
            finite_difference(actual, reference),
            finite_difference(naive, reference),
        )
        self.actual_squares += float(error.square().sum())
        self.naive_squares += float(naive_error.square().sum())
        self.reference_squares += float(finite(reference).square().sum())
        self.actual_largest = max(self.actual_largest, largest(error))
        self.naive_largest = max(self.naive_largest, largest(naive_error))
        self.reference_largest = max(self.reference_largest, largest(finite(reference)))


class ErrorStatistics:
    """Errors of an operator and of naive PyTorch, gathered over seeds and then judged."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.seeds = 0
        self.labels: dict[str, LabelErrors] = {}

    def add(
        self, actual: dict[str, Tensor], reference: dict[str, Tensor], naive: dict[str, Tensor]
    ) -> None:
        """Count one seed in; what is judged case by case is judged here."""
        assert actual.keys() == reference.keys(), f"{list(actual)} against {list(reference)}"
        if self.dtype != torch.float32:
            assert_accurate(actual, reference, naive, self.dtype)
        self.seeds += 1
        for label, expected in reference.items():
            assert_same_kind(label, actual[label], expected)
            if expected.is_floating_point() and expected.numel():
                errors = self.labels.setdefault(label, LabelErrors())
                errors.add(actual[label], expected, naive[label])

    def assert_accurate(self) -> None:
        """Hold all that was added to the rule of the dtype."""
        if self.dtype == torch.float64:
            return
        assert self.seeds >= MIN_SEEDS, f"{self.seeds} seeds are too few to judge errors"
        for label, errors in self.labels.items():
            assert math.isfinite(errors.naive_squares), f"{label}: naive is no yardstick"
            if self.dtype == torch.float32:
                self.assert_largest(label, errors)
            else:
                self.assert_rms(label, errors)

    def assert_largest(self, label: str, errors: LabelErrors) -> None:
        roundoff = unit_roundoff(self.dtype) * errors.reference_largest
        allowed = 2 * errors.naive_largest + 4 * roundoff
        assert errors.actual_largest <= allowed, (
            f"{label}: largest error {errors.actual_largest:.3g} over {self.seeds} seeds,"
            f" allowed {allowed:.3g} (naive {errors.naive_largest:.3g})"
        )

    def assert_rms(self, label: str, errors: LabelErrors) -> None:
        actual, naive = math.sqrt(errors.actual_squares), math.sqrt(errors.naive_squares)
        noise = FLOAT32_NOISE * math.sqrt(errors.reference_squares)
        assert actual <= naive + noise, (
            f"{label}: RMS error is {actual / naive if naive else math.inf:.4g} times naive's"
            f" over {self.seeds} seeds"
        )
