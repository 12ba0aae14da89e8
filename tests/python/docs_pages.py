"""The pages of docs/ops and what stands on them, for the tests."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
DIRECTIVE = re.compile(r"^```\{operator\} (\w+)\n```$", re.M)

sys.path.insert(0, str(DOCS / "_ext"))
from operator_facts import markdown as generated  # noqa: E402

OPERATOR_PAGES = sorted((DOCS / "ops").glob("*.md"))


def operators_of(page: Path) -> list[str]:
    """The operators whose schema and errors stand on a page."""
    return DIRECTIVE.findall(page.read_text())


def page_of(operator: str) -> Path:
    """The one page of an operator."""
    (page,) = (page for page in OPERATOR_PAGES if operator in operators_of(page))
    return page


def as_read(page: Path) -> str:
    """A page with what the directives put there."""
    return DIRECTIVE.sub(lambda found: generated(found[1]), page.read_text())
