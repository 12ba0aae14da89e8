"""What show_config says, on every instruction set."""

from __future__ import annotations

import re

import pytest
import torch

import fulgurite
from fulgurite import _C


def test_names_build_torch_and_compiler() -> None:
    first = fulgurite.show_config().splitlines()[0]
    assert fulgurite.__version__ in first
    assert f"built with torch {_C.torch_version()}" in first
    assert f"running with torch {torch.__version__}" in first
    assert re.search(r"by (g\+\+|clang) \d+", first)


@pytest.mark.parametrize("wanted", _C.available_isas())
def test_names_the_set_in_use_and_every_kernel(wanted: str) -> None:
    before = _C.get_isa()
    _C.set_isa(wanted)
    try:
        text = fulgurite.show_config()
        table = _C.kernel_table()
    finally:
        _C.set_isa(before)
    machine = ", ".join(_C.available_isas())
    assert f"instruction set: {wanted} (this machine has {machine}; FULGURITE_ISA" in text
    assert table
    for kernel in table:
        compiled = ", ".join(kernel["variants"])
        assert f"  {kernel['name']}: {kernel['active']} (compiled for {compiled})" in text
