"""Accuracy on the sizes that the suites of flash-attention, PyTorch and xFormers test.

A normal run takes a sample in which every value occurs; ``FULGURITE_FULL=1`` takes all
combinations, and the RMS rule at long sequences too.
"""

from __future__ import annotations

import random
from itertools import cycle, product
from typing import Any

import pytest
import torch
from common_checks import CPU, FULL

from fulgurite.testing import (
    OPERATORS,
    ErrorStatistics,
    Sample,
    assert_accurate,
    evaluate,
    to_float64,
)
from fulgurite.testing.references.attention import attention, attention_naive
from fulgurite.testing.samples.attention import qkv

WIDTHS = [(8, 8), (16, 16), (32, 32), (59, 59), (64, 64), (72, 72), (80, 80), (96, 96), (111, 111),
          (128, 128), (160, 160), (192, 128), (203, 203), (256, 256), (576, 512)]  # fmt: skip
LENGTHS = [(1, 147), (49, 49), (64, 128), (113, 203), (128, 217), (144, 144), (108, 256),
           (196, 196), (256, 512), (512, 256), (239, 3), (3, 799), (1023, 1024)]  # fmt: skip
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
    """Every value once; in a full run every triple of width, lengths and hiding."""
    if FULL:
        choose = random.Random(0).choice
        triples = product(WIDTHS, LENGTHS, HIDING)
        return [(w, n, choose(HEADS), hiding, choose(DTYPES)) for w, n, hiding in triples]
    short = cycle(pair for pair in LENGTHS if max(pair) <= 300)
    return list(zip(WIDTHS, short, cycle(HEADS), cycle(HIDING), cycle(DTYPES[::-1]), strict=False))


def check(case: Case, seed: int, statistics: ErrorStatistics | None = None) -> None:
    (D, Dv), (N, M), (Hq, Hkv), hiding, dtype = case
    generator = torch.Generator().manual_seed(seed)
    tensors = qkv(generator, dtype, CPU, B=1, Hq=Hq, Hkv=Hkv, N=N, M=M, D=D, Dv=Dv)
    sample, entry = Sample("grid", tensors, hiding), OPERATORS["attention"]
    actual = evaluate(entry.op, entry, sample, cotangent_dtype=dtype)
    reference = evaluate(attention, entry, sample.map(to_float64), cotangent_dtype=dtype)
    naive = evaluate(attention_naive, entry, sample, cotangent_dtype=dtype)
    assert_accurate(actual, reference, naive, dtype)
    if statistics is not None:
        statistics.add(actual, reference, naive)


@pytest.mark.parametrize("case", grid(), ids=case_id)
def test_grid(case: Case, isa: str) -> None:
    check(case, seed=0)


ACCURACY: list[Case] = [
    ((64, 64), (128, 128), (2, 1), {"causal": True}, torch.bfloat16),
    ((64, 64), (128, 128), (2, 1), {"causal": True}, torch.float16),
    ((40, 24), (130, 200), (1, 1), {}, torch.bfloat16),
    ((80, 80), (256, 256), (1, 1), {"causal": True, "window_left": 100}, torch.bfloat16),
]


@pytest.mark.parametrize("case", ACCURACY, ids=case_id)
def test_error_is_no_larger_than_naive(case: Case, isa: str) -> None:
    statistics = ErrorStatistics()
    for seed in range(16):
        check(case, seed, statistics)
    statistics.assert_no_worse_than_naive()


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_of_a_long_sequence(dtype: torch.dtype, isa: str) -> None:
    check(((64, 64), (512, 512), (2, 1), {"causal": True}, dtype), seed=0)


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("hiding", HIDING, ids=str)
@pytest.mark.parametrize("length", [128, 512, 1024])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_error_of_longer_sequences(
    width: int, length: int, hiding: dict[str, Any], dtype: torch.dtype, isa: str
) -> None:
    statistics = ErrorStatistics()
    for seed in range(16):
        check(((width, width), (length, length), (2, 1), hiding, dtype), seed, statistics)
    statistics.assert_no_worse_than_naive()
