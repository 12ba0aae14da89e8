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
from fulgurite.testing.backend import always_spread
from moe.test_experts import NAMES, experts_inputs, run, run_reference


def ids_of(load: str, T: int, E: int, K: int) -> Tensor:
    """Choices that cut into parts in different ways; the first and the last experts get nothing."""
    generator = torch.Generator().manual_seed(1)
    choices = torch.stack([torch.randperm(E - 4, generator=generator)[:K] + 2 for _ in range(T)])
    if load == "skewed":  # one expert has twice the assignments of a part
        choices[:, 1:3] = E // 2
    if load == "sentinels":
        choices[torch.rand(T, K, generator=generator) < 0.3] = -1
    return choices


@pytest.mark.parametrize("load", ["even", "skewed", "sentinels"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_parts_change_no_bits(isa: str, dtype: torch.dtype, load: str) -> None:
    """Small calls are one part; those that must use every thread are up to K."""
    T, E, K, H, I = 120, 20, 8, 70, 40
    inputs = experts_inputs(0, T=T, E=E, H=H, I=I, K=K, dtype=dtype)
    ids, grad = ids_of(load, T, E, K), torch.randn(T, H).to(dtype)
    whole = run(inputs, ids, grad)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    assert_accurate(whole, run_reference(wide, ids, grad), run_reference(inputs, ids, grad), dtype)
    for expert in (0, 1, E - 2, E - 1):
        assert whole["grad of w_in"][expert].eq(0).all()
        assert whole["grad of w_out"][expert].eq(0).all()
    for count in (1, 3):
        with threads(count), always_spread():
            assert_same_bits(run(inputs, ids, grad), whole, f"in parts, {count} threads")
            recomputed = run(inputs, ids, grad, save_hidden=False)
            assert_same_bits(recomputed, whole, f"recomputed in parts, {count} threads")


@pytest.mark.parametrize("save_hidden", [True, False])
def test_operands_take_the_memory_of_a_part(save_hidden: bool) -> None:
    T, E, K, H, I = 256, 16, 8, 128, 128
    inputs = experts_inputs(1, T=T, E=E, H=H, I=I, K=K, dtype=torch.float32)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    ids, grad = ids_of("even", T, E, K), torch.randn(T, H)

    def step() -> tuple[Tensor, ...]:
        x, weights, w_in, w_out = leaves
        y = F.moe_experts(x, ids, weights, w_in, w_out, save_hidden=save_hidden)
        return torch.autograd.grad(y, leaves, grad)

    def beside() -> int:
        step()
        results = 4 * sum(tensor.numel() for tensor in leaves)
        saved = 4 * T * K * 2 * I if save_hidden else 0
        return peak_bytes(step) - results - saved

    with threads(1):
        whole = beside()
        with always_spread():
            parts = beside()
    assert parts < whole * 0.5, f"{parts} of {whole} bytes"
