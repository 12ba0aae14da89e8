"""scripts/cuda_budgets.py: counts of kernels are read, compared, and never raised by it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[3] / "scripts" / "cuda_budgets.py"
_spec = importlib.util.spec_from_file_location("cuda_budgets", PATH)
assert _spec is not None
assert _spec.loader is not None
cuda_budgets = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cuda_budgets)

PRINTED = """\
ptxas info    : Compiling entry function '_ZN9fulgurite4cuda3oneENS0_7ProblemE' for 'sm_80'
ptxas info    : Function properties for _ZN9fulgurite4cuda3oneENS0_7ProblemE
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN9fulgurite4cuda3oneENS0_7ProblemE' for 'sm_90'
ptxas info    : Function properties for _ZN9fulgurite4cuda3oneENS0_7ProblemE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 0 barriers
"""
ONE = "fulgurite::cuda::one"


def counts(registers: int, stack: int = 0, spills: int = 0, shared: int = 0) -> dict[str, int]:
    return {"registers": registers, "stack": stack, "spills": spills, "shared": shared}


KERNELS = {ONE: {"80": counts(40, 8, 16, 512), "90": counts(38)}}


def test_counts_are_read_by_kernel_and_architecture() -> None:
    assert cuda_budgets.counts_of(PRINTED) == KERNELS


def test_what_rose_is_named() -> None:
    budgets = {ONE: {"80": counts(40, 8, 15, 511), "90": counts(39)}, "gone": {}}
    assert cuda_budgets.complaints(KERNELS, KERNELS) == []
    assert cuda_budgets.complaints(KERNELS, budgets) == [
        "gone: there is no such kernel",
        f"{ONE}, sm_80: 16 spills, its budget is 15",
        f"{ONE}, sm_80: 512 shared, its budget is 511",
    ]
    assert cuda_budgets.complaints(KERNELS, {}) == [f"{ONE}: has no budget"]


def test_writing_lowers_adds_and_removes_but_never_raises() -> None:
    budgets = {ONE: {"80": counts(39, 9, 16, 512), "120": counts(50)}, "gone": {}}
    assert cuda_budgets.lowered(KERNELS, budgets) == {
        ONE: {"80": counts(39, 8, 16, 512), "90": counts(38), "120": counts(50)}
    }


def test_the_page_says_what_was_not_done() -> None:
    text = cuda_budgets.page("13.0", KERNELS)
    assert "compiled by nvcc 13.0" in text
    assert "None was run on a GPU;\nnone was timed." in text
    assert "| `one` | 80, 90 | 40 (80); 38 (90) | 8 (80); 0 (90) |" in text
