"""The examples in the docstrings of fulgurite.nn run as shown."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["fulgurite.nn.attention", "fulgurite.nn.moe", "fulgurite.nn.norm"]
)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
