"""``{operator} NAME``: schema and errors of an operator. ``{command} MODULE``: what its help says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import operator_facts


class OperatorDirective(SphinxDirective):
    """Schema and errors of an operator, as the library that is installed has them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(operator_facts.markdown(self.arguments[0]))


class CommandDirective(SphinxDirective):
    """What ``python -m MODULE [SUBCOMMAND] --help`` prints."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", *self.arguments, "--help"]
        settings = os.environ | {
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),  # of a package that is not installed
        }
        printed = subprocess.run(
            command, check=True, capture_output=True, text=True, env=settings
        ).stdout
        return [nodes.literal_block(printed, printed, language="text")]


PAGE = re.compile(r"\bdocs/((?:ops|howto)/\w+)\.md")


def link_pages(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Where a docstring names a page, a link to it."""
    lines[:] = [PAGE.sub(r":doc:`/\1`", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("operator", OperatorDirective)
    app.add_directive("command", CommandDirective)
    app.connect("autodoc-process-docstring", link_pages)
    return {"parallel_read_safe": True}
