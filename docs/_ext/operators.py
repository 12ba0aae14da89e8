"""``{operator} NAME``: an operator's schema and errors. ``{command} MODULE``: a program's help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import operator_facts
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


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


def link_pages(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Where a docstring names a page, a link to it."""
    lines[:] = [PAGE.sub(r":doc:`/\1`", line) for line in lines]


def name_both_results(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str
) -> tuple[str | None, str]:
    """Functions with return_lse return one tensor or two; their annotation is that of two."""
    if signature and "return_lse: bool" in signature:
        return signature, "Tensor | tuple[Tensor, Tensor]"
    return signature, returns


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("operator", OperatorDirective)
    app.add_directive("command", CommandDirective)
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("autodoc-process-signature", name_both_results)
    return {"parallel_read_safe": True}
