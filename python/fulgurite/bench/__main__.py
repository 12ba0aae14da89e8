"""``python -m fulgurite.bench [attention] [moe] [optim]``: paired ratios to plain PyTorch.

As a table, JSON and a chart.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from fulgurite.bench.harness import Row, chart, geometric_means, machine, measure, save

FAMILIES = ["attention", "moe", "optim"]


def _run(family: str, quick: bool, seconds: float) -> list[Row]:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    facts = machine()
    table = Table(
        title=f"{family}: {facts['cpu']}, {facts['isa']}, {facts['threads']} threads, "
        f"torch {facts['torch']}"
    )
    for column in ("work", "shape", "baseline", "fulgurite ms", "plain ms", "ratio", "quartiles"):
        table.add_column(
            column, justify="left" if column in ("work", "shape", "baseline") else "right"
        )
    rows = []
    for case in import_module(f"fulgurite.bench.{family}").cases(quick):
        row = measure(case, seconds)
        rows.append(row)
        table.add_row(
            row.work,
            row.shape,
            row.baseline,
            f"{row.ours_ms:.2f}",
            f"{row.plain_ms:.2f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f}–{row.ratio_high:.2f}",
        )
    console.print(table)
    for work, mean, least in geometric_means(rows):
        console.print(f"{work}: geometric mean {mean:.2f}, smallest {least:.2f}", highlight=False)
    return rows


def main(argv: list[str] | None = None) -> int:
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
    for family in options.families or FAMILIES:
        rows = _run(family, options.quick, options.seconds)
        if options.out:
            save(rows, options.out / f"{family}.json")
            chart(
                rows,
                options.out / f"{family}.png",
                f"{family} on {machine()['cpu']}, {machine()['isa']}",
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
