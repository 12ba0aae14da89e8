"""Experts are computed in parts: what that must not change, and the memory that it saves.

T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import assert_same_bits, threads
from fulgurite.demo.memory import peak_bytes
from fulgurite.testing import assert_accurate
from moe.test_experts import NAMES, experts_inputs, run, run_reference


def ids_of(load: str, T: int, E: int, K: int) -> Tensor:
    """Choices that cut into parts in different ways; the first and the last experts get nothing."""
    generator = torch.Generator().manual_seed(1)
    choices = torch.stack([torch.randperm(E - 4, generator=generator)[:K] + 2 for _ in range(T)])
    if load == "skewed":  # one expert fills more than a part, those before and behind it none
        choices[:, 1:3] = E // 2
    if load == "sentinels":
        choices[torch.rand(T, K, generator=generator) < 0.3] = -1
    return choices


@pytest.mark.parametrize("load", ["even", "skewed", "sentinels"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_parts_change_no_bits(isa: str, dtype: torch.dtype, load: str) -> None:
    """Rows of 2,400 columns are cut: into 2 to 8 parts with a thread, one with sixteen."""
    T, E, K, H, I = 300, 20, 8, 20, 2400
    inputs = experts_inputs(0, T=T, E=E, H=H, I=I, K=K, dtype=dtype)
    ids, grad = ids_of(load, T, E, K), torch.randn(T, H).to(dtype)
    with threads(16):
        whole = run(inputs, ids, grad)
    for expert in (0, 1, E - 2, E - 1):
        assert whole["grad of w_in"][expert].eq(0).all()
        assert whole["grad of w_out"][expert].eq(0).all()
    with threads(3):
        assert_same_bits(run(inputs, ids, grad), whole, "with three threads")
    with threads(1):
        assert_same_bits(run(inputs, ids, grad, save_hidden=False), whole, "recomputed, one thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_equal_the_reference(isa: str, dtype: torch.dtype) -> None:
    T, E, K, H, I = 300, 20, 8, 20, 2400
    inputs = experts_inputs(0, T=T, E=E, H=H, I=I, K=K, dtype=dtype)
    ids, grad = ids_of("skewed", T, E, K), torch.randn(T, H).to(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    with threads(1):
        actual = run(inputs, ids, grad)
    assert_accurate(actual, run_reference(wide, ids, grad), run_reference(inputs, ids, grad), dtype)


@pytest.mark.parametrize("save_hidden", [True, False])
def test_operands_take_the_memory_of_a_part(save_hidden: bool) -> None:
    T, E, K, H, I = 512, 16, 8, 64, 1024
    inputs = experts_inputs(1, T=T, E=E, H=H, I=I, K=K, dtype=torch.float32)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    ids, grad = ids_of("even", T, E, K), torch.randn(T, H)

    def step() -> tuple[Tensor, ...]:
        x, weights, w_in, w_out = leaves
        y = F.moe_experts(x, ids, weights, w_in, w_out, save_hidden=save_hidden)
        return torch.autograd.grad(y, leaves, grad)

    results = 4 * sum(tensor.numel() for tensor in leaves)
    saved = 4 * T * K * 2 * I if save_hidden else 0
    operands = 4 * T * K * (H + 3 * I)
    with threads(2):
        step()
        beside = peak_bytes(step) - results - saved
    assert beside < operands * 0.5, f"{beside / operands:.2f} of all operands"
