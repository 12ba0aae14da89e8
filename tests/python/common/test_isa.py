"""Choosing an instruction set, in the process and by FULGURITE_ISA, and the table of kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fulgurite
from fulgurite import _C

ASK = "from fulgurite import _C; print(_C.get_isa())"


def run_python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FULGURITE_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_sets_rise_from_the_baseline() -> None:
    isas = _C.available_isas()
    assert isas[0] == "baseline"
    assert len(set(isas)) == len(isas)


def test_selected_set_is_in_use(isa: str) -> None:
    assert _C.get_isa() == isa
    for kernel in _C.kernel_table():
        lower = _C.available_isas()[: _C.available_isas().index(isa) + 1]
        best = [name for name in lower if name in kernel["variants"]][-1]
        assert kernel["active"] == best, kernel["name"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_of_bfloat16_serve_that_type_alone(isa: str, dtype: torch.dtype) -> None:
    x = torch.randn(1, 1, 8, 8).to(dtype)
    [ran] = {row["isa"] for row in fulgurite.explain("attention", x, x, x)}
    narrow = {"avx512_bf16", "amx"}
    variants = {row["name"]: row["variants"] for row in _C.kernel_table()}["attention_forward"]
    lower = _C.available_isas()[: _C.available_isas().index(isa) + 1]
    served = [s for s in lower if s in variants and (s not in narrow or dtype == torch.bfloat16)]
    assert ran == served[-1]


def test_unknown_set_is_refused_and_changes_nothing() -> None:
    before = _C.get_isa()
    with pytest.raises(ValueError, match=r"baseline.*got 'sse9'"):
        _C.set_isa("sse9")
    assert _C.get_isa() == before


@pytest.mark.parametrize("wanted", _C.available_isas())
def test_environment_selects(wanted: str) -> None:
    assert run_python(ASK, wanted).stdout.strip() == wanted


def test_environment_with_an_unknown_set_is_an_error() -> None:
    result = run_python(ASK, "sse9")
    assert result.returncode != 0
    assert "expected an instruction set of this machine" in result.stderr
    assert "sse9" in result.stderr


def test_table_counts_calls_and_tasks() -> None:
    def row() -> dict[str, int]:
        return next(k for k in _C.kernel_table() if k["name"] == "attention_forward")

    before = row()
    x = torch.ones(2, 2, 5, 8)
    torch.ops.fulgurite.attention(x, x, x)
    after = row()
    assert after["calls"] == before["calls"] + 1
    assert after["tasks"] > before["tasks"]
