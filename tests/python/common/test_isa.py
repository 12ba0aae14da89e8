"""Choosing an instruction set, in the process and by FULGURITE_ISA, and the table of kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fulgurite
from fulgurite.testing.backend import backends, current, kernels, select

ASK = "from fulgurite.testing.backend import current; print(current().set)"
SETS = [backend.set for backend in backends()]


def run_python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FULGURITE_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_sets_rise_from_the_baseline() -> None:
    assert SETS[0] == "baseline"
    assert len(set(SETS)) == len(SETS)


def up_to(isa: str) -> list[str]:
    """The sets of this machine that are no higher."""
    return SETS[: SETS.index(isa) + 1]


def test_selected_set_is_in_use(isa: str) -> None:
    assert current().set == isa
    for name, kernel in kernels().items():
        best = [one for one in up_to(isa) if one in kernel["variants"]][-1]
        assert kernel["active"] == best, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_of_bfloat16_serve_that_type_alone(isa: str, dtype: torch.dtype) -> None:
    x = torch.randn(1, 1, 8, 8).to(dtype)
    [ran] = {row["isa"] for row in fulgurite.explain("attention", x, x, x)}
    narrow = {"avx512_bf16", "amx"}
    variants = kernels()["attention_forward"]["variants"]
    served = [
        one
        for one in up_to(isa)
        if one in variants and (one not in narrow or dtype == torch.bfloat16)
    ]
    assert ran == served[-1]


def test_unknown_set_is_refused_and_changes_nothing() -> None:
    before = current()
    with pytest.raises(ValueError, match=r"baseline.*got 'sse9'"):
        select("sse9")
    assert current() == before


@pytest.mark.parametrize("wanted", sorted({SETS[0], SETS[-1]}))  # each costs an import of torch
def test_environment_selects(wanted: str) -> None:
    assert run_python(ASK, wanted).stdout.strip() == wanted


def test_environment_with_an_unknown_set_is_an_error() -> None:
    result = run_python(ASK, "sse9")
    assert result.returncode != 0
    assert "expected an instruction set of this machine" in result.stderr
    assert "sse9" in result.stderr


def test_table_counts_calls_and_tasks() -> None:
    before = kernels()["attention_forward"]
    x = torch.ones(2, 2, 5, 8)
    torch.ops.fulgurite.attention(x, x, x)
    after = kernels()["attention_forward"]
    assert after["calls"] == before["calls"] + 1
    assert after["tasks"] > before["tasks"]
