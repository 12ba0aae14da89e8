"""``{operator} NAME``: schema and errors of an operator. ``{command} MODULE``: what its help says."""

from __future__ import annotations

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
    """What ``python -m MODULE --help`` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", self.arguments[0], "--help"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [nodes.literal_block(printed, printed, language="text")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("operator", OperatorDirective)
    app.add_directive("command", CommandDirective)
    return {"parallel_read_safe": True}
