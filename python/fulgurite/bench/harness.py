"""Paired measurement: both sides in one process, taking turns; the median ratio of neighbours.

Times drift with the machine's mood; the ratio of two runs next to each other does not.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fulgurite.bench.machine import commit, machine, now
from fulgurite.bench.peak import TRIES, peak, read_bandwidth
from fulgurite.demo.memory import peak_bytes

Side = Callable[[], Any]
Parts = dict[str, dict[str, float]]  # by side, "ours" and "plain"


class Took(NamedTuple):
    """Seconds by the clock, and those of the process's threads."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Case:
    """One piece of work done by both sides.

    Attributes:
        work: what is done, the same words in every case of a group.
        shape: the sizes.
        baseline: the plain-PyTorch way, named.
        ours, plain: called with no arguments; what they allocate is part of the time.
        operations, products_of: multiplications and additions that the work takes in products of a
            dtype, to report ours as a share of the machine's own peak.
        bytes_read: what the work has to read, to report a share of the read bandwidth instead.
        least: pairs to measure at least, fewer for a plain side of seconds.
        apart: all of ours first, then all of plain: for a plain side that gives back gigabytes,
            whose pages whoever runs next would have to fault in again.
        parts: what the time of each side goes into, as fractions, asked for after the pairs.
    """

    work: str
    shape: str
    baseline: str
    ours: Side
    plain: Side
    operations: float = 0.0
    products_of: torch.dtype = torch.float32
    bytes_read: float = 0.0
    least: int = 7
    apart: bool = False
    parts: Callable[[], Parts] | None = None


@dataclass(frozen=True)
class MemoryCase:
    """What both sides allocate at once beyond ``kept`` bytes of results."""

    work: str
    shape: str
    baseline: str
    ours: Side
    plain: Side
    kept: int = 0


@dataclass(frozen=True)
class Row:
    """What was measured: milliseconds are medians; ratio is plain / ours, above 1 we are faster.

    ``share`` is ours of the machine's ``limit`` (products' peak in GFLOP/s, or read bandwidth in
    GB/s), the mean of one measured right before and one after; both 0 where the case has none, or
    where what was measured cannot be (``peak``). ``cpu_ratio`` is the ratio of the threads' own
    seconds, which others on the machine lengthen less than the clock's; waiting that spins counts
    in it. ``parts`` are fractions of each side's time.
    """

    work: str
    shape: str
    baseline: str
    ours_ms: float
    plain_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int
    share: float = 0.0
    limit: float = 0.0
    cpu_ratio: float = 0.0
    parts: Parts = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryRow:
    """Memory in MiB, without results: peaks of what torch's allocator gave out, and growth of a
    process of each side's own."""

    work: str
    shape: str
    baseline: str
    ours_mib: float
    plain_mib: float
    ours_growth_mib: float
    plain_growth_mib: float


def _took(side: Side) -> Took:
    start, busy = time.perf_counter(), time.process_time()
    side()
    return Took(time.perf_counter() - start, time.process_time() - busy)


def _limit(case: Case) -> float:
    """Operations or bytes a second of the machine as it is now; 0 where the case has none."""
    if case.bytes_read:
        return read_bandwidth()
    return peak(case.products_of) if case.operations else 0.0


def _share(case: Case, seconds: float, limits: list[float]) -> tuple[float, float]:
    """Ours of the mean limit, and that limit in units of 10⁹ a second.

    Nothing multiplies faster than the peak: it is measured again where a row would, and the row
    has no share where it still does. Bytes may come out of a cache, faster than from memory.
    """
    limits = [limit for limit in limits if limit]
    for _ in range(TRIES if limits else 0):
        limit = sum(limits) / len(limits)
        share = (case.bytes_read or case.operations) / limit / seconds
        if case.bytes_read or share <= 1:
            return share, limit / 1e9
        limits = [max(*limits, _limit(case))]
    return 0.0, 0.0


def peak_mib(case: MemoryCase, side: Side) -> float:
    """Peak of what torch's allocator gives out, after a first call."""
    side()
    return (peak_bytes(side) - case.kept) / 2**20


def _pairs(case: Case, seconds: float, most: int) -> list[tuple[Took, Took]]:
    """What ours and plain took."""
    if case.apart:
        ours = [_took(case.ours) for _ in range(1 + case.least)]
        plain = [_took(case.plain) for _ in range(1 + case.least)]
        return list(zip(ours[1:], plain[1:], strict=True))
    _took(case.ours), _took(case.plain)
    pairs: list[tuple[Took, Took]] = []
    start = time.perf_counter()
    while len(pairs) < case.least or (time.perf_counter() - start < seconds and len(pairs) < most):
        if len(pairs) % 2:
            last, first = _took(case.plain), _took(case.ours)
        else:
            first, last = _took(case.ours), _took(case.plain)
        pairs.append((first, last))
    return pairs


def measure(case: Case, seconds: float = 2.0, most: int = 200) -> Row:
    """Run both sides in turn, the order alternating, for about ``seconds`` or ``least`` pairs."""
    case.ours()
    limit = _limit(case)
    pairs = _pairs(case, seconds, most)
    ratios = sorted(plain.wall / ours.wall for ours, plain in pairs)
    quarter = len(ratios) // 4
    ours_seconds = statistics.median(ours.wall for ours, _ in pairs)
    return Row(
        case.work,
        case.shape,
        case.baseline,
        1e3 * ours_seconds,
        1e3 * statistics.median(plain.wall for _, plain in pairs),
        statistics.median(ratios),
        ratios[quarter],
        ratios[-1 - quarter],
        len(pairs),
        *_share(case, ours_seconds, [limit, _limit(case)]),
        cpu_ratio=statistics.median(plain.cpu / max(ours.cpu, 1e-9) for ours, plain in pairs),
        parts=case.parts() if case.parts else {},
    )


def geometric_means(rows: list[Row]) -> Iterator[tuple[str, float, float]]:
    """(work, geometric mean, smallest ratio) of each kind of work, in order of appearance."""
    for work in dict.fromkeys(row.work for row in rows):
        ratios = [row.ratio for row in rows if row.work == work]
        yield work, statistics.geometric_mean(ratios), min(ratios)


def _written(row: Row) -> dict[str, Any]:
    """Without the parts of a case that has none."""
    return {name: value for name, value in asdict(row).items() if value or name != "parts"}


def save(rows: list[Row], memory: list[MemoryRow], path: Path) -> None:
    """Commit, date, machine and rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "commit": commit(),
        "date": now(),
        "machine": machine(),
        "rows": [_written(row) for row in rows],
        "memory": [asdict(row) for row in memory],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def chart(rows: list[Row], path: Path, title: str) -> None:
    """Ratios as bars, with the quartiles of the pairs as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.28 * len(rows) + 1.2), layout="constrained")
    position = range(len(rows))
    ratios = [row.ratio for row in rows]
    whiskers = [
        [row.ratio - row.ratio_low for row in rows],
        [row.ratio_high - row.ratio for row in rows],
    ]
    axes.barh(position, ratios, xerr=whiskers, color="#4477aa", ecolor="#99bbdd")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(position, [f"{row.work}, {row.shape}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time of plain PyTorch / time of fulgurite (right of 1: fulgurite is faster)")
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
