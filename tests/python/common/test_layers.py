"""A folder says who may include its files: what devices share knows none of them, nor torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "csrc"
RULES = sorted(SOURCES.glob("*/rules/*.h"))
PLANS = sorted(SOURCES.glob("*/plan.*"))
NEUTRAL = sorted(
    path
    for path in SOURCES.glob("**/*")
    if path.suffix in {".h", ".cpp"}
    and not {"cpu", "python", "simd"} & set(path.relative_to(SOURCES).parts)
)
# Of the folders beside them, rules and plans include these alone.
SHARED = {
    "common/ceil_div.h",
    "common/choice.h",
    "common/host_device.h",
    "common/philox.h",
    "common/value.h",
    "common/walk_table.h",
    "simd/types.h",
}


def name(path: Path) -> str:
    return str(path.relative_to(SOURCES))


def includes(path: Path) -> list[str]:
    return re.findall(r'#include\s*[<"]([^>"]+)[>"]', path.read_text())


def test_there_are_files() -> None:
    assert len(RULES) >= 15
    assert [name(path) for path in PLANS if path.suffix == ".h"] == [
        "amp/plan.h",
        "attention/plan.h",
        "linear/plan.h",
        "moe/plan.h",
    ]
    assert len(NEUTRAL) > len(RULES) + len(PLANS)
    assert includes(SOURCES / "amp" / "plan.cpp")[0] == "amp/plan.h"


@pytest.mark.parametrize("path", NEUTRAL, ids=name)
def test_nothing_device_neutral_includes_a_device(path: Path) -> None:
    assert [file for file in includes(path) if "cpu" in Path(file).parts] == []


@pytest.mark.parametrize("path", [*RULES, *PLANS], ids=name)
def test_rules_and_plans_include_std_and_each_other(path: Path) -> None:
    own = {name(path) for path in [*RULES, *PLANS]} | SHARED
    assert [
        file for file in includes(path) if ("/" in file or "." in file) and file not in own
    ] == []
