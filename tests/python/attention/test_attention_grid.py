"""Accuracy on the sizes that the suites of flash-attention, PyTorch and xFormers test.

A normal run takes a sample in which every value occurs; ``FULGURITE_FULL=1`` takes all
combinations, and the RMS rule at long sequences too.
"""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import cycle, product
from typing import Any

import pytest
import torch

from common_checks import (
    DEVICE,
    FULL,
    Results,
    assert_equals_reference,
    reference_and_naive,
)
from fulgurite.testing import OPERATORS, ErrorStatistics, Sample, assert_accurate, evaluate
from fulgurite.testing.samples.attention import qkv
from fulgurite.testing.tolerances import MIN_SEEDS

ATTENTION = OPERATORS["attention"]
WIDTHS = [(8, 8), (16, 16), (32, 32), (59, 59), (64, 64), (72, 72), (80, 80), (96, 96), (111, 111),
          (128, 128), (160, 160), (192, 128), (203, 203), (256, 256), (576, 512)]  # fmt: skip
LENGTHS = [(1, 147), (49, 49), (64, 128), (113, 203), (128, 217), (144, 144), (108, 256),
           (196, 196), (256, 512), (512, 256), (1, 239), (3, 799), (1023, 1024)]  # fmt: skip
HEADS = [(2, 2), (4, 1), (6, 2)]
HIDING: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "align": "top_left"},
    {"window_left": 64, "window_right": 0},
    {"window_left": 16, "window_right": 40},
    {"causal": True, "window_left": 128},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Case = tuple[tuple[int, int], tuple[int, int], tuple[int, int], dict[str, Any], torch.dtype]


def case_id(case: Case) -> str:
    (D, Dv), (N, M), (Hq, Hkv), hiding, dtype = case
    words = "-".join(f"{name}={value}" for name, value in hiding.items()) or "full"
    return f"D{D},{Dv}-N{N}-M{M}-H{Hq},{Hkv}-{words}-{str(dtype)[6:]}"


def grid() -> list[Case]:
    """Every width and short length; in a full run every triple of width, lengths and hiding."""
    choose = random.Random(0).choice
    if FULL:
        triples = product(WIDTHS, LENGTHS, HIDING)
    else:
        short = cycle(pair for pair in LENGTHS if max(pair) <= 300)
        triples = ((width, next(short), choose(HIDING)) for width in WIDTHS)
    return [(w, n, choose(HEADS), hiding, choose(DTYPES)) for w, n, hiding in triples]


def sample_of(case: Case, seed: int) -> Sample:
    (D, Dv), (N, M), (Hq, Hkv), hiding, dtype = case
    generator = torch.Generator().manual_seed(seed)
    sizes = {"B": 1, "Hq": Hq, "Hkv": Hkv, "N": N, "M": M, "D": D, "Dv": Dv}
    return Sample(case_id(case), qkv(generator, dtype, DEVICE, **sizes), hiding)


@lru_cache(maxsize=8)
def sixteen_seeds(index: int) -> list[tuple[Results, Results]]:
    """Reference and naive of a case of ACCURACY, shared by the instruction sets."""
    case = ACCURACY[index]
    return [reference_and_naive(ATTENTION, sample_of(case, s), case[-1]) for s in range(MIN_SEEDS)]


GRID = grid()


@lru_cache(maxsize=1)
def one_seed(index: int) -> tuple[Results, Results]:
    """Reference and naive of a case of GRID, shared by the instruction sets."""
    return reference_and_naive(ATTENTION, sample_of(GRID[index], 0), GRID[index][-1])


@pytest.mark.parametrize("index", range(len(GRID)), ids=lambda i: case_id(GRID[i]))
def test_grid(index: int, isa: str) -> None:
    """One seed a case: sizes are the question here, and float32's rule is for many seeds."""
    case = GRID[index]
    dtype = case[-1]
    magnitude = case[0][1] ** 0.5 if dtype == torch.float32 else 0.0
    actual = evaluate(ATTENTION.op, ATTENTION, sample_of(case, 0), cotangent_dtype=dtype)
    assert_accurate(actual, *one_seed(index), dtype, magnitude=magnitude)


def accuracy_cases() -> list[Case]:
    """Classes of shapes for the RMS rule, small ones in a normal run."""
    if FULL:
        widths, lengths = [(w, w) for w in (32, 64, 128)], [(n, n) for n in (128, 384)]
        long = product([(64, 64)], [(1024, 1024)], [(2, 1)], HIDING[:2], DTYPES)
        return [*product(widths, lengths, [(2, 1)], HIDING, DTYPES), *long]
    window = {"causal": True, "window_left": 60}
    return [
        *[((64, 64), (128, 128), (2, 1), {"causal": True}, dtype) for dtype in DTYPES],
        ((40, 24), (130, 200), (1, 1), {}, torch.bfloat16),
        ((80, 80), (160, 160), (1, 1), window, torch.float16),
    ]


ACCURACY = accuracy_cases()


@pytest.mark.parametrize("index", range(len(ACCURACY)), ids=lambda i: case_id(ACCURACY[i]))
def test_error_is_no_larger_than_naive(index: int, isa: str) -> None:
    case = ACCURACY[index]
    statistics = ErrorStatistics(case[-1])
    for seed, yardsticks in enumerate(sixteen_seeds(index)):
        call = sample_of(case, seed)
        actual = evaluate(ATTENTION.op, ATTENTION, call, cotangent_dtype=case[-1])
        statistics.add(actual, *yardsticks)
    statistics.assert_accurate()


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_of_a_long_sequence(dtype: torch.dtype, isa: str) -> None:
    case = ((64, 64), (512, 512), (2, 1), {"causal": True}, dtype)
    assert_equals_reference(ATTENTION, sample_of(case, 0), dtype)
