"""The examples of docs/howto that need other libraries (blocks marked ``py``) run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

PAGES = Path(__file__).resolve().parents[2] / "docs" / "howto"
BLOCK = re.compile(r"^```py\n(.*?)^```$", re.M | re.S)
EXAMPLES = [
    (page.stem, block)
    for page in sorted(PAGES.glob("*.md"))
    for block in BLOCK.findall(page.read_text())
]


@pytest.mark.parametrize(("page", "block"), EXAMPLES)
def test_example(page: str, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a comment beside a print says is what it prints."""
    AcceleratorState._reset_state(reset_partial_state=True)  # else precision is the first block's
    exec(compile(block, page, "exec"), {})
    said = re.findall(r"print\(.*\)  # (.*)", block)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("{'train_runtime'")] == said  # Trainer's
