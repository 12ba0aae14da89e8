"""What show_config says, on every instruction set."""

from __future__ import annotations

import re

import torch

import fulgurite
from fulgurite.testing.backend import Backend, backends, kernels


def test_names_build_torch_and_compiler() -> None:
    first = fulgurite.show_config().splitlines()[0]
    assert fulgurite.__version__ in first
    assert f"built with torch {'.'.join(torch.__version__.split('.')[:2])}." in first
    assert f"running with torch {torch.__version__}" in first
    assert re.search(r"by (g\+\+|clang) \d+", first)


def test_names_the_set_in_use_and_every_kernel(backend: Backend) -> None:
    text = fulgurite.show_config()
    machine = ", ".join(one.set for one in backends())
    assert f"instruction set: {backend.set} (this machine has {machine}; FULGURITE_ISA" in text
    assert kernels()
    for name, kernel in kernels().items():
        compiled = ", ".join(kernel["variants"])
        assert f"  {name}: {kernel['active']} (compiled for {compiled})" in text
