"""When a result is accurate: the error of plain PyTorch in the same dtype is the yardstick.

Against float64, with u the unit roundoff of the dtype:

- 16 bit: the RMS error over at least 16 seeds is at most naive's; every case's largest error is at
  most twice naive's plus u·max|ref|.
- float32: every case's largest error is at most twice naive's plus 4·u·max|ref|.
- float64: there is no better computation to compare with, so the largest error is at most
  2¹²·u·max(1, max|ref|): a wrong term is far above it, another order of summation far below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
    by chance. It is the size of the terms, about 1 for normal inputs.
    """
    assert actual.keys() == reference.keys(), f"{list(actual)} against {list(reference)}"
    for label, expected in reference.items():
        assert_same_kind(label, actual[label], expected)
        if not expected.is_floating_point() or expected.numel() == 0:
            continue
        yardstick = None if naive is None else naive[label]
        size = max(magnitude, largest(expected))
        allowed = allowed_error(expected, yardstick, dtype, size)
        error = largest_error(actual[label], expected)
        assert error <= allowed, (
            f"{label}: error {error:.3g}, allowed {allowed:.3g} "
            f"(max|ref| {size:.3g}, {dtype})"
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
    naive_error = largest_error(naive, reference)
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


def finite_difference(actual: Tensor, expected: Tensor) -> Tensor:
    """actual − expected where the expected number is finite, as float64."""
    difference = actual.double() - expected.double()
    return difference[torch.isfinite(expected)]


def largest_error(actual: Tensor, expected: Tensor) -> float:
    difference = finite_difference(actual, expected)
    return float(difference.abs().max()) if difference.numel() else 0.0


def largest(reference: Tensor) -> float:
    finite = reference[torch.isfinite(reference)]
    return float(finite.abs().max()) if finite.numel() else 0.0


@dataclass
class ErrorStatistics:
    """Errors of an operator and of naive PyTorch, gathered over seeds for the RMS rule."""

    cases: int = 0
    squares: dict[str, list[float]] = field(default_factory=dict)

    def add(
        self, actual: dict[str, Tensor], reference: dict[str, Tensor], naive: dict[str, Tensor]
    ) -> None:
        """Count one seed in."""
        self.cases += 1
        for label, expected in reference.items():
            if not expected.is_floating_point() or expected.numel() == 0:
                continue
            sums = self.squares.setdefault(label, [0.0, 0.0, 0.0])
            sums[0] += sum_of_squares(finite_difference(actual[label], expected))
            sums[1] += sum_of_squares(finite_difference(naive[label], expected))
            sums[2] += sum_of_squares(expected[torch.isfinite(expected)])

    def assert_no_worse_than_naive(self) -> None:
        """RMS(actual) ≤ RMS(naive), over all that was added."""
        assert self.cases >= MIN_SEEDS, f"{self.cases} seeds are too few to judge an RMS"
        for label, (actual, naive, reference) in self.squares.items():
            assert math.isfinite(naive), f"{label}: naive's error of {naive} is no yardstick"
            allowed = math.sqrt(naive) + FLOAT32_NOISE * math.sqrt(reference)
            assert math.sqrt(actual) <= allowed, (
                f"{label}: RMS error is {math.sqrt(actual / naive) if naive else math.inf:.4g}"
                f" times naive's over {self.cases} seeds"
            )


def sum_of_squares(values: Tensor) -> float:
    return float(values.square().sum())
