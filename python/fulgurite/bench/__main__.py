"""``python -m fulgurite.bench [FAMILY …]``: paired ratios of each family to plain PyTorch.

As a table, JSON and a chart.
``python -m fulgurite.bench compare OLD NEW`` compares two such files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fulgurite.bench import compare
from fulgurite.bench.growth import grown_mib
from fulgurite.bench.harness import (
    MemoryRow,
    Row,
    chart,
    geometric_means,
    measure,
    peak_mib,
    save,
)
from fulgurite.bench.machine import machine

FAMILIES = ["attention", "moe", "optim", "linear", "norm", "clients"]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        words = column in ("work", "shape", "baseline")
        table.add_column(column, justify="left" if words else "right")
    return table


def _run(family: str, quick: bool, seconds: float) -> tuple[list[Row], list[MemoryRow]]:
    console = Console(width=None if sys.stdout.isatty() else 140)
    facts = machine()
    what = ("work", "shape", "baseline")
    times = _table(
        f"{family}: {facts['cpu']}, {facts['isa']}, {facts['threads']} threads, "
        f"torch {facts['torch']}",
        *what, "fulgurite ms", "plain ms", "ratio", "quartiles", "cpu", "share",
    )  # fmt: skip
    module = import_module(f"fulgurite.bench.{family}")
    rows = []
    for case in module.cases(quick):
        row = measure(case, seconds)
        rows.append(row)
        times.add_row(
            row.work,
            row.shape,
            row.baseline,
            f"{row.ours_ms:.2f}",
            f"{row.plain_ms:.2f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f}–{row.ratio_high:.2f}",
            f"{row.cpu_ratio:.2f}",
            f"{row.share:.0%}" if row.share else "",
        )
    console.print(times)
    for row in rows:
        for side, fractions in row.parts.items():
            shown = ", ".join(f"{part} {f:.0%}" for part, f in fractions.items() if f >= 0.005)
            console.print(f"{row.work}, {row.shape}, {side}: {shown}", highlight=False)
    for work, mean, least in geometric_means(rows):
        console.print(f"{work}: geometric mean {mean:.2f}, smallest {least:.2f}", highlight=False)
    memory = []
    peaks = _table("MiB beside results: allocator's peak, growth of a process", *what,
                   "fulgurite", "plain", "fulgurite grows", "plain grows")  # fmt: skip
    for index, case in enumerate(module.memory_cases(quick)):
        numbers = [peak_mib(case, side) for side in (case.ours, case.plain)]
        numbers += [grown_mib(family, index, side, quick) for side in ("ours", "plain")]
        memory.append(MemoryRow(case.work, case.shape, case.baseline, *numbers))
        peaks.add_row(case.work, case.shape, case.baseline, *(f"{n:.1f}" for n in numbers))
    console.print(peaks)
    return rows, memory


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["compare"]:
        return compare.main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m fulgurite.bench", description=__doc__)
    parser.add_argument(
        "families", nargs="*", metavar="family", help=f"of {', '.join(FAMILIES)} (all)"
    )
    parser.add_argument("--quick", action="store_true", help="few and small cases")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case (2)")
    parser.add_argument("--out", type=Path, help="folder for FAMILY.json and FAMILY.png")
    options = parser.parse_args(argv)
    unknown = [family for family in options.families if family not in FAMILIES]
    if unknown:
        parser.error(f"expected a family of {', '.join(FAMILIES)}, got {unknown[0]}")
    families = options.families or FAMILIES
    if len(families) > 1:  # a process for each: one's freed memory is not another's
        flags = ["--seconds", str(options.seconds)] + ["--quick"] * options.quick
        flags += ["--out", str(options.out)] if options.out else []
        for family in families:
            subprocess.run([sys.executable, "-m", "fulgurite.bench", family, *flags], check=True)
        return 0
    (family,) = families
    rows, memory = _run(family, options.quick, options.seconds)
    if options.out:
        title = f"{family} on {machine()['cpu']}, {machine()['isa']}"
        save(rows, memory, options.out / f"{family}.json")
        chart(rows, options.out / f"{family}.png", title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
