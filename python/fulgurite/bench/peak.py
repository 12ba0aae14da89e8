"""What the machine can do at most, now: operations and bytes a second that shares are taken of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from fulgurite._config import runtime
from fulgurite.bench.machine import as_wide_as_the_machine
from fulgurite.testing.backend import kernels

TRIES = 3
# A float64 vector has half as many lanes. 16-bit products run at least as fast as float32's.
_OF_FLOAT32 = {torch.float64: 0.5, torch.float32: 1.0, torch.bfloat16: 1.0}
_CLOSE = 0.95  # of torch's product: the clock moves between two measurements


def best_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of the fastest call."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def name_of(dtype: torch.dtype) -> str:
    """``float32``, without torch's name before it."""
    return str(dtype).removeprefix("torch.")


def product_rate(size: int = 512) -> float:
    """Operations a second of torch's own float32 product, the best of five."""
    a, b = torch.ones(2, size, size)
    out = torch.empty(size, size)
    with torch.no_grad():
        return 2.0 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out), 5)


def read_bandwidth() -> float:
    """Bytes a second that torch's threads read from memory: the best of three sums."""
    numbers = torch.ones(64 << 20)
    return 4 * numbers.numel() / best_seconds(numbers.sum, 3)


def product_peak(dtype: torch.dtype) -> float:
    """What ``measure_peak`` finds, unchecked.

    Raises:
        ValueError: a dtype other than float64, float32 and bfloat16.
    """
    return runtime().measure_peak(name_of(dtype))


def _set_that_ran() -> str:
    """Of the last product_peak: a build may lack the one that was asked for."""
    return str(kernels()["product_peak"]["ran"])


def peak(dtype: torch.dtype) -> float:
    """Operations a second of all threads in products of a dtype, as the set in use makes them.

    A peak below what torch's own product reaches is none: it is measured again, and 0 where it
    stays so. A set narrower than the machine's vectors may be slower than torch.
    """
    for _ in range(TRIES):
        measured = product_peak(dtype)
        if not as_wide_as_the_machine(_set_that_ran()):
            return measured
        if measured >= _CLOSE * _OF_FLOAT32[dtype] * product_rate():
            return measured
    return 0.0
