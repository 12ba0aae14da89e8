"""Paired measurement: both sides in one process, taking turns; the median ratio of neighbours.

Times drift with the machine's mood; the ratio of two runs next to each other does not.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import fulgurite
from fulgurite.demo.memory import peak_bytes

Side = Callable[[], Any]


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

    ``share`` is ours of the machine's peak or bandwidth, measured right before and after; 0 where
    the case has none.
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


def name_of(dtype: torch.dtype) -> str:
    """``float32``, without torch's name before it."""
    return str(dtype).removeprefix("torch.")


def _seconds(side: Side) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def read_bandwidth() -> float:
    """Bytes a second that torch's threads read from memory: the best of three sums."""
    numbers = torch.ones(64 << 20)
    return 4 * numbers.numel() / min(_seconds(numbers.sum) for _ in range(3))


def _limit(case: Case) -> float:
    """Seconds that the work would take at the machine's peak or bandwidth, as they are now."""
    if case.bytes_read:
        return case.bytes_read / read_bandwidth()
    if case.operations and fulgurite._C:
        return case.operations / float(fulgurite._C.measure_peak(name_of(case.products_of)))
    return 0.0


def peak_mib(case: MemoryCase, side: Side) -> float:
    """Peak of what torch's allocator gives out, after a first call."""
    side()
    return (peak_bytes(side) - case.kept) / 2**20


def _pairs(case: Case, seconds: float, most: int) -> list[tuple[float, float]]:
    """Seconds of ours and plain."""
    if case.apart:
        ours = [_seconds(case.ours) for _ in range(1 + case.least)]
        plain = [_seconds(case.plain) for _ in range(1 + case.least)]
        return list(zip(ours[1:], plain[1:], strict=True))
    _seconds(case.ours), _seconds(case.plain)
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < case.least or (time.perf_counter() - start < seconds and len(pairs) < most):
        if len(pairs) % 2:
            last, first = _seconds(case.plain), _seconds(case.ours)
        else:
            first, last = _seconds(case.ours), _seconds(case.plain)
        pairs.append((first, last))
    return pairs


def measure(case: Case, seconds: float = 2.0, most: int = 200) -> Row:
    """Run both sides in turn, the order alternating, for about ``seconds`` or ``least`` pairs."""
    case.ours()
    limit = _limit(case)
    pairs = _pairs(case, seconds, most)
    ratios = sorted(plain / ours for ours, plain in pairs)
    quarter = len(ratios) // 4
    ours_seconds = statistics.median(ours for ours, _ in pairs)
    return Row(
        case.work,
        case.shape,
        case.baseline,
        1e3 * ours_seconds,
        1e3 * statistics.median(plain for _, plain in pairs),
        statistics.median(ratios),
        ratios[quarter],
        ratios[-1 - quarter],
        len(pairs),
        (limit + _limit(case)) / 2 / ours_seconds,
    )


def machine() -> dict[str, Any]:
    """The facts that a ratio depends on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    c = fulgurite._C
    return {
        "cpu": model,
        "isa": c.get_isa() if c else "unknown",
        "isas": c.available_isas() if c else [],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fulgurite": fulgurite.__version__,
        "python": platform.python_version(),
    }


def geometric_means(rows: list[Row]) -> Iterator[tuple[str, float, float]]:
    """(work, geometric mean, smallest ratio) of each kind of work, in order of appearance."""
    for work in dict.fromkeys(row.work for row in rows):
        ratios = [row.ratio for row in rows if row.work == work]
        yield work, statistics.geometric_mean(ratios), min(ratios)


def save(rows: list[Row], memory: list[MemoryRow], path: Path) -> None:
    """Machine and rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
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
