"""Every kernel file says what it reads and writes, what a task is, and how sums are ordered."""

from __future__ import annotations

from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "csrc"
KERNELS = sorted(
    [
        *SOURCES.glob("**/cpu/kernels/*.cpp"),
        *(p for p in SOURCES.glob("**/cuda/kernels/*.cuh") if "__global__" in p.read_text()),
        SOURCES / "simd" / "unpacked.cpp",
    ]
)
LINES = ["Reads", "Writes", "Task", "Order of sums"]


def opening_comment(text: str) -> list[str]:
    """The lines before the first that is code."""
    lines = text.splitlines()
    code = next(i for i, line in enumerate(lines) if line and not line.startswith("//"))
    return lines[:code]


def test_there_are_kernels() -> None:
    assert len(KERNELS) >= 22
    assert opening_comment("// Reads: x.\n\nint y;\n// Writes: y.\n") == ["// Reads: x.", ""]


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(SOURCES)))
def test_opens_with_its_four_lines(path: Path) -> None:
    comment = opening_comment(path.read_text())
    labels = [line[3:].split(":")[0] for line in comment]
    assert [label for label in labels if label in LINES] == LINES
