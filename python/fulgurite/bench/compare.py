"""``python -m fulgurite.bench compare OLD NEW``: what changed between two result files.

OLD and NEW are two FAMILY.json, or two folders of them. A row of one is found in the other by its
work (which names the dtype), shape and baseline.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich.console import Console
from rich.table import Table

from fulgurite.bench.harness import Row

WORSE, BETTER, NOISE = "worse", "better", "within noise"
_STYLES = {WORSE: "red", BETTER: "green", NOISE: ""}
_FACTS = ("cpu", "isa", "threads", "torch")
Key = tuple[str, str, str]


class BadFile(ValueError):
    """Not a result; the message is one line that names the file."""


@dataclass(frozen=True)
class Result:
    """A file that the benchmark wrote; the oldest have neither commit nor date."""

    path: Path
    machine: dict[str, Any]
    rows: dict[Key, Row]
    commit: str | None = None
    date: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: commit {self.commit or 'unknown'}, {self.date or 'no date'}"


def read(path: Path) -> Result:
    """A result file.

    Raises:
        BadFile: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
        names = [entry.name for entry in fields(Row)]
        rows = [Row(**{n: row[n] for n in names if n in row}) for row in content["rows"]]
        machine = dict(content["machine"])
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path} is no result of fulgurite.bench") from error
    by_key = {(row.work, row.shape, row.baseline): row for row in rows}
    if len(by_key) < len(rows):
        raise BadFile(f"{path} has a row twice")
    return Result(path, machine, by_key, content.get("commit"), content.get("date"))


def verdict(old: Row, new: Row) -> str:
    """Whether a ratio changed by more than its spread.

    The spread is the middle half of the pairs, ``ratio_low`` to ``ratio_high``. Halves that touch
    are noise: medians of seven pairs of equal work lie further apart once in twenty times.
    """
    if new.ratio_high < old.ratio_low:
        return WORSE
    return BETTER if new.ratio_low > old.ratio_high else NOISE


def _ratio(row: Row) -> str:
    return f"{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})"


def table_of(old: Result, new: Result) -> tuple[Table, list[str]]:
    """All rows, those that only one file has too; the verdicts of those that both have."""
    table = Table(title=f"old: {old}\nnew: {new}", title_justify="left", caption_justify="left")
    for column in ("work", "shape", "baseline"):
        table.add_column(column)
    for column in ("old ratio", "new ratio", "change"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    verdicts, factors = [], []
    for key, before in old.rows.items():
        if key not in new.rows:
            table.add_row(*key, _ratio(before), "", "", "only old")
            continue
        after = new.rows[key]
        verdicts.append(verdict(before, after))
        factors.append(after.ratio / before.ratio)
        numbers = (_ratio(before), _ratio(after), f"{factors[-1] - 1:+.1%}")
        table.add_row(*key, *numbers, verdicts[-1], style=_STYLES[verdicts[-1]])
    for key, after in new.rows.items():
        if key not in old.rows:
            table.add_row(*key, "", _ratio(after), "", "only new")
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in (WORSE, BETTER, NOISE))
    mean = f"; geometric mean {geometric_mean(factors) - 1:+.1%}" if factors else ""
    table.caption = f"{len(verdicts)} rows in both: {counts}{mean}"
    return table, verdicts


def other_facts(old: Result, new: Result) -> Iterator[str]:
    """What makes two files hard to compare: another processor, set, number of threads, torch."""
    for fact in _FACTS:
        before, after = old.machine.get(fact), new.machine.get(fact)
        if before != after:
            yield f"{fact} differs: {before} and {after}"


def pairs(old: Path, new: Path) -> list[tuple[Path, Path]]:
    """The files to compare: the two, or those of the same name in two folders.

    Raises:
        BadFile: a file and a folder, or folders without a result of the same name.
    """
    if old.is_dir() != new.is_dir():
        raise BadFile(f"{old} and {new}: expected two files or two folders")
    if not old.is_dir():
        return [(old, new)]
    names = [path.name for path in sorted(old.glob("*.json")) if (new / path.name).exists()]
    names = [name for name in names if not name.startswith("demo")]
    if not names:
        raise BadFile(f"{old} and {new} have no result of the same name")
    return [(old / name, new / name) for name in names]


def main(argv: list[str]) -> int:
    """Print a table per file; 1 with ``--fail-worse`` where a row got worse, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m fulgurite.bench compare", description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--fail-worse", action="store_true", help="exit with 1 if a row is worse")
    options = parser.parse_args(argv)
    try:
        results = [(read(old), read(new)) for old, new in pairs(options.old, options.new)]
    except BadFile as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 160)
    worse = False
    for old, new in results:
        table, verdicts = table_of(old, new)
        console.print(table)
        for line in other_facts(old, new):
            console.print(line, style="yellow", highlight=False)
        worse |= WORSE in verdicts
    return 1 if worse and options.fail_worse else 0
