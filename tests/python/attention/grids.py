"""What the grids share: rows that hold every value, and how a case of a grid is judged."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

import torch

from common_checks import Results, reference_and_naive, threads
from fulgurite.testing import ErrorStatistics, Operator, Sample, assert_accurate, evaluate
from fulgurite.testing.tolerances import MIN_SEEDS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Case(Protocol):
    """A cell of a grid, hashable."""

    @property
    def dtype(self) -> torch.dtype: ...

    def sample(self, seed: int) -> Sample: ...

    def __hash__(self) -> int: ...


def rows(count: int, *columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    """``count`` rows that mix the columns at random, every value as often as its neighbours."""
    draw = random.Random(0)

    def rounds(values: Sequence[Any]) -> list[Any]:
        repeats = -(-count // len(values))
        return [value for _ in range(repeats) for value in draw.sample(values, len(values))]

    return list(islice(zip(*map(rounds, columns), strict=False), count))


@lru_cache(maxsize=MIN_SEEDS)  # the instruction sets share what a case is compared with
def yardsticks(operator: Operator, case: Case, seed: int) -> tuple[Sample, Results, Results]:
    """The call of a case, its float64 reference and what naive PyTorch computes."""
    call = case.sample(seed)
    return call, *reference_and_naive(operator, call, case.dtype)


def assert_case(
    operator: Operator,
    case: Case,
    *,
    magnitude: float = 0.0,
    sums: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """One seed. ``magnitude`` is for float32 alone, where naive may be exact by luck.

    ``sums`` has the magnitudes of results that are sums of many terms, in every dtype: one such
    number may meet the exact one by luck too.
    """
    call, reference, naive = yardsticks(operator, case, 0)
    actual = evaluate(operator.op, operator, call, cotangent_dtype=case.dtype)
    assert actual.keys() == reference.keys()
    least = magnitude if case.dtype == torch.float32 else 0.0
    with threads(1):
        for label in reference:
            one, expected, yardstick = ({label: x[label]} for x in (actual, reference, naive))
            size = max(least, sums.get(label, 0.0))
            assert_accurate(one, expected, yardstick, case.dtype, magnitude=size)


def assert_errors(operator: Operator, case: Case) -> None:
    """The rule over many seeds: an RMS error in 16 bit, a largest error in float32."""
    statistics = ErrorStatistics(case.dtype)
    for seed in range(MIN_SEEDS):
        call, reference, naive = yardsticks(operator, case, seed)
        actual = evaluate(operator.op, operator, call, cotangent_dtype=case.dtype)
        with threads(1):
            statistics.add(actual, reference, naive)
    statistics.assert_accurate()
