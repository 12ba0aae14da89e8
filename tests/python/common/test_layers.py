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
    and not {"cpu", "cuda", "python", "simd"} & set(path.relative_to(SOURCES).parts)
)
CUDA = sorted(
    path
    for path in SOURCES.glob("**/*")
    if path.suffix in {".cu", ".cuh", ".h", ".cpp"} and "cuda" in path.relative_to(SOURCES).parts
)
# csrc/cuda/call.h and its neighbours, csrc/<family>/cuda/*_cuda.cpp
CUDA_TORCH_SIDE = [
    path
    for path in CUDA
    if path.stem in {"call", "torch_runtime"} or path.name.endswith("_cuda.cpp")
]
# Of the folders beside them, rules and plans include these alone.
SHARED = {
    "common/ceil_div.h",
    "common/choice.h",
    "common/host_device.h",
    "common/philox.h",
    "common/rounded.h",
    "common/silu.h",
    "common/value.h",
    "common/value_bits.h",
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
    assert len(CUDA) > 25
    assert len(CUDA_TORCH_SIDE) >= 5
    assert includes(SOURCES / "amp" / "plan.cpp")[0] == "amp/plan.h"


def test_every_rule_is_compiled_as_device_code() -> None:
    compiled = includes(SOURCES.parent / "tests" / "cuda_on_host" / "rules.cu")
    assert compiled == [name(path) for path in RULES]


@pytest.mark.parametrize("path", NEUTRAL, ids=name)
def test_nothing_device_neutral_includes_a_device(path: Path) -> None:
    assert [file for file in includes(path) if {"cpu", "cuda"} & set(Path(file).parts)] == []


@pytest.mark.parametrize("path", CUDA, ids=name)
def test_cuda_code_sees_no_torch_and_keeps_its_assembly_in_one_file(path: Path) -> None:
    of_torch = [f for f in includes(path) if f.startswith(("ATen/", "torch/", "c10/"))]
    if path in CUDA_TORCH_SIDE:  # nothing that only a CUDA build of torch has
        assert [f for f in of_torch if "cuda" in f.lower()] == []
        assert [f for f in includes(path) if f in {"cuda/cux.h", "cuda/launch.h"}] == []
    else:
        assert of_torch == []
    # fiber.cpp switches the stacks of the host.
    if name(path) not in {"cuda/cux.h", "cuda/host/fiber.cpp"}:
        assert not re.search(r"\basm\b", path.read_text())


@pytest.mark.parametrize("path", [*RULES, *PLANS], ids=name)
def test_rules_and_plans_include_std_and_each_other(path: Path) -> None:
    own = {name(path) for path in [*RULES, *PLANS]} | SHARED
    assert [
        file for file in includes(path) if ("/" in file or "." in file) and file not in own
    ] == []
