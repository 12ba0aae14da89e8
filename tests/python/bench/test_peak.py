"""The machine's peak: the same again and again, never below torch's product, never exceeded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

import pytest
import torch

from fulgurite.bench import machine
from fulgurite.bench import peak as measured
from fulgurite.bench.harness import Case, measure
from fulgurite.testing.backend import current

SETS = ["baseline", "avx2", "avx512", "avx512_bf16", "amx"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_set_has_a_peak(isa: str, dtype: torch.dtype) -> None:
    assert current().set == isa
    assert 1e9 < measured.product_peak(dtype) < 1e15


def test_peaks_of_unknown_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected float64, float32 or bfloat16, got int8"):
        measured.product_peak(torch.int8)


def test_a_peak_does_not_depend_on_how_threads_wake() -> None:
    """After pauses in which torch's threads fall asleep; a busy machine may give a fifth of its
    time, a peak of one round was off by 300."""
    peaks = []
    for _ in range(6):
        time.sleep(0.02)
        peaks.append(measured.product_peak(torch.float32))
    assert max(peaks) < 20 * min(peaks), [f"{p:.3g}" for p in peaks]


@pytest.mark.parametrize(
    ("dtype", "lanes"), [(torch.float32, 1.0), (torch.float64, 0.5), (torch.bfloat16, 1.0)]
)
def test_a_peak_is_above_a_product(dtype: torch.dtype, lanes: float) -> None:
    """Of torch's; a tenth of it for a set of half the width on a busy machine."""
    found = measured.product_peak(dtype)
    assert found > 0.1 * lanes * measured.product_rate()


def test_sets_as_wide_as_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"flags": "sse2 avx2 avx512f"}
    monkeypatch.setattr(machine, "_cpuinfo", lambda: flags)
    wide = [isa for isa in SETS if machine.as_wide_as_the_machine(isa)]
    assert wide == ["avx512", "avx512_bf16", "amx"]
    flags["flags"] = "sse2 avx2"
    assert machine.as_wide_as_the_machine("avx2")
    assert not machine.as_wide_as_the_machine("baseline")
    flags.clear()
    assert machine.as_wide_as_the_machine("neon")


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[float]], list[torch.dtype]]:
    """Makes ``product_peak`` give these; the list of dtypes that it was asked for. torch's product
    runs at 1e11, and the set in use is as wide."""

    def set_peaks(values: Iterable[float]) -> list[torch.dtype]:
        asked: list[torch.dtype] = []
        following = iter(values)

        def give(dtype: torch.dtype) -> float:
            asked.append(dtype)
            return next(following)

        monkeypatch.setattr(measured, "product_peak", give)
        monkeypatch.setattr(measured, "product_rate", lambda: 1e11)
        monkeypatch.setattr(measured, "as_wide_as_the_machine", lambda isa: True)
        return asked

    return set_peaks


def test_a_peak_below_torchs_product_is_measured_again(
    peaks: Callable[[Iterable[float]], list[torch.dtype]],
) -> None:
    asked = peaks([3e8, 1.5e11])
    assert measured.peak(torch.bfloat16) == 1.5e11
    assert asked == [torch.bfloat16] * 2
    peaks([0.6e11])
    assert measured.peak(torch.float64) == 0.6e11


def test_a_peak_that_stays_below_is_none(
    peaks: Callable[[Iterable[float]], list[torch.dtype]],
) -> None:
    asked = peaks(itertools.repeat(3e8))
    assert measured.peak(torch.float32) == 0
    assert len(asked) == measured.TRIES


def test_a_narrow_set_may_be_slower_than_torch(
    peaks: Callable[[Iterable[float]], list[torch.dtype]], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks([3e10])
    monkeypatch.setattr(measured, "as_wide_as_the_machine", lambda isa: False)
    assert measured.peak(torch.float32) == 3e10


def product_of(seconds: float, operations: float) -> Case:
    def wait() -> None:
        time.sleep(seconds)

    return Case("", "", "", wait, wait, operations=operations, least=1)


def test_nothing_multiplies_faster_than_the_peak(
    peaks: Callable[[Iterable[float]], list[torch.dtype]],
) -> None:
    case = product_of(0.005, 1e12)  # 2e14 a second, or less on a busy machine
    peaks([1.2e11, 1.2e11, 4e14])  # before, after, and once more
    row = measure(case, seconds=0)
    assert 0 < row.share <= 0.5
    assert row.limit == 4e5
    asked = peaks(itertools.repeat(1.2e11))
    row = measure(case, seconds=0)
    assert row.share == row.limit == 0
    assert len(asked) == 2 + measured.TRIES


def test_a_share_is_of_the_peaks_around_its_row(
    peaks: Callable[[Iterable[float]], list[torch.dtype]],
) -> None:
    peaks([2e11, 4e11])
    row = measure(product_of(0.005, 1e8), seconds=0)
    assert row.limit == pytest.approx(300)
    assert row.share == pytest.approx(1e8 / 3e11 / (row.ours_ms / 1e3))
    row = measure(product_of(0.001, 0), seconds=0)
    assert row.share == row.limit == 0
