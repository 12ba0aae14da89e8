"""Every Python example in README, docs and docstrings runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import fulgurite

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
PAGES_WITH_EXAMPLES = [page for page in PAGES if PYTHON_BLOCK.search(page.read_text())]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(fulgurite.__path__, "fulgurite.")
    if not name.endswith("__main__")
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_page(page: Path, tmp_path: Path) -> None:
    """The blocks of a page, one after the other, as a reader would paste them.

    They run from a file, because TorchScript reads the source of what it compiles.
    """
    blocks = PYTHON_BLOCK.findall(page.read_text())
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "example"})


def test_the_readme_has_an_example() -> None:
    assert ROOT / "README.md" in PAGES_WITH_EXAMPLES


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
