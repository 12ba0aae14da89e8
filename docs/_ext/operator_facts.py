"""What the library itself says of an operator: its schema, and its errors by example.

Without sphinx, so that the tests count the words of a page as readers see it.
"""

from __future__ import annotations

import re
import textwrap

import torch

from fulgurite.testing import OPERATORS

WIDTH = 100
INSIDE_AN_ARGUMENT = "\u00a0"  # keeps `Tensor? bias=None` on one line
GIVEN = re.compile(r", got [^,]*(\[.*\])?[^,]*$")


def schema(name: str) -> str:
    """The registered schema, its arguments broken into lines."""
    registered = OPERATORS[name].op._schema
    text = str(registered).removeprefix("fulgurite::")
    for argument in registered.arguments:
        default = argument.default_value
        if isinstance(default, float):  # 1e-06, not 9.9999999999999995e-07
            text = re.sub(rf"\b{argument.name}=[^,)]+", f"{argument.name}={default}", text)
    kept = re.sub(r"(?<!,) (?!->)", INSIDE_AN_ARGUMENT, text)
    lines = textwrap.wrap(
        kept, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace(INSIDE_AN_ARGUMENT, " ")


def errors(name: str) -> dict[str, list[str]]:
    """The messages of the wrong calls of ``fulgurite.testing``, by the error's type.

    Without what all of them share: the operator's name before, and what was given after. Of those
    that differ in numbers alone the first.
    """
    found: dict[str, dict[str, str]] = {}
    for wrong in OPERATORS[name].errors(torch.device("cpu")):
        try:
            OPERATORS[name].op(*wrong.args, **wrong.kwargs)
        except wrong.error as error:
            message = GIVEN.sub("", str(error).split("\n")[0]).removeprefix(f"fulgurite::{name}: ")
            numberless = re.sub(r"\b\d+\b", "", message)
            found.setdefault(type(error).__name__, {}).setdefault(numberless, message)
    return {error: list(messages.values()) for error, messages in found.items()}


def markdown(name: str) -> str:
    """What ``{operator} NAME`` puts into a page."""
    lines = ["```text", schema(name), "```", ""]
    for error, messages in errors(name).items():
        lines.append(f"{error}\n: " + "\n: ".join(f"`{message}`" for message in messages) + "\n")
    return "\n".join(lines)
