"""The reference is whole: every operator has its page, every public name its place."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from docs_pages import DOCS, OPERATOR_PAGES, as_read, generated, operators_of
from fulgurite.testing import OPERATORS

MOST_WORDS = 1200
PUBLIC = [
    "fulgurite",
    "fulgurite.amp",
    "fulgurite.integrations.diffusers",
    "fulgurite.integrations.sdpa",
    "fulgurite.integrations.timm",
    "fulgurite.integrations.transformers",
    "fulgurite.memory",
    "fulgurite.nn",
    "fulgurite.nn.functional",
    "fulgurite.optim",
    "fulgurite.testing",
]
REFERENCE = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
ENTRY = re.compile(r"^\.\. (?:auto\w+|py:data):: (\S+?)(?:\(\))?$", re.M)


def test_every_operator_has_one_page() -> None:
    found = [name for page in OPERATOR_PAGES for name in operators_of(page)]
    assert sorted(found) == sorted(name for name in OPERATORS if not name.startswith("_"))


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=lambda page: page.stem)
def test_a_page_of_reference_is_short(page: Path) -> None:
    words = [token for token in as_read(page).split() if re.search(r"\w", token)]
    assert len(words) <= MOST_WORDS


def test_the_index_names_every_page() -> None:
    index = (DOCS / "ops/index.md").read_text()
    for page in OPERATOR_PAGES:
        if page.stem != "index":
            assert f"({page.name})" in index
            assert f"\n{page.stem}\n" in index


@pytest.mark.parametrize("name", OPERATORS)
def test_generated_parts_say_what_the_library_says(name: str) -> None:
    text = generated(name)
    arguments = [argument.name for argument in OPERATORS[name].op._schema.arguments]
    assert all(re.search(rf"\b{argument}\b", text) for argument in arguments)
    assert re.search(r"^(Type|Runtime|Value)Error\n: `expected ", text, re.M)
    assert ", got " not in text


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    entries = ENTRY.findall(REFERENCE)
    imported = importlib.import_module(module)
    for name in imported.__all__:
        if isinstance(getattr(imported, name), ModuleType):
            assert f"{module}.{name}" in PUBLIC
        else:
            assert entries.count(f"{module}.{name}") == 1, name
