"""torch.compile(fullgraph=True) with inductor: once per family, and a block that uses all of them.

Compiling takes tens of seconds a case; what does not need generated code is checked with the
aot_eager backend for every operator instead. AOTInductor: tests/interop.
"""

from __future__ import annotations

import copy
import getpass
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import cache_dir

import fulgurite.nn.functional as F
from fulgurite.nn import Attention, MoE, RMSNorm, rotary_table

pytestmark = pytest.mark.slow
ops = torch.ops.fulgurite


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="inductor")


def assert_same_training_step(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Value and gradients, compiled against eager.

    Inductor fuses what is between the operators and may round there differently.
    """

    def step(run: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        out = run(*leaves)
        out.sum().backward()
        return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]

    expected, actual = step(function), step(compiled(function))
    assert len(expected) == 1 + sum(x.is_floating_point() for x in inputs)
    torch.testing.assert_close(actual, expected)


def test_the_compiler_has_a_cache_of_its_own() -> None:
    """Code compiled for an earlier build is not found. Processes that tests start inherit it."""
    assert cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]
    users = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    assert Path(cache_dir()) != users


def test_attention() -> None:
    cos, sin = rotary_table(40, 16)

    def mixed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = F.rope(query, cos, sin), F.rope(key, cos, sin)
        out, lse = F.attention(query, key, value, causal=True, window_left=9, return_lse=True)
        return nn.functional.gelu(out * 2) + lse.exp()[..., None]

    assert_same_training_step(
        mixed, torch.randn(2, 4, 40, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    )


def test_moe() -> None:
    def experts(x: Tensor, router: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        logits = x @ router.T
        weights, ids, counts = F.moe_route(logits, 2, score="sigmoid")
        permutation, inverse, _ = F.moe_plan(ids, router.size(0))
        gathered = F.moe_combine(F.moe_permute(x, permutation, inverse), inverse, weights)
        y = F.moe_experts(x, ids, weights, w_in, w_out) + gathered * counts.sum()
        losses = F.moe_balance_loss(logits, ids, score="sigmoid") + F.moe_z_loss(logits)
        return y.tanh() + losses

    assert_same_training_step(
        experts,
        torch.randn(30, 16),
        torch.randn(6, 16),
        torch.randn(6, 2 * 12, 16),
        torch.randn(6, 16, 12),
    )


def test_scans() -> None:
    def mixed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, state = F.causal_conv1d(x.transpose(1, 2), weight, bias, "silu")
        more, _ = F.causal_conv1d(out * 2, weight, initial_state=state)
        rates, columns = -weight.exp(), x[..., :4].transpose(1, 2)
        y, last = F.selective_scan(more, out, rates, columns, columns, z=out, delta_softplus=True)
        return nn.functional.gelu(y) + state.exp().mean() + last.mean()

    assert_same_training_step(mixed, torch.randn(2, 30, 12), torch.randn(12, 4), torch.randn(12))


def test_linear_attention() -> None:
    def mixed(x: Tensor, rates: Tensor) -> Tensor:
        heads = x.unflatten(-1, (3, 4)).transpose(1, 2)
        out, state, _ = F.linear_attention(heads.tanh(), heads, heads * 2, -rates.abs(), scale=0.5)
        return out.tanh() + state.mean()

    assert_same_training_step(mixed, torch.randn(2, 30, 12), torch.randn(3))


def adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    scaler: list[Tensor],
) -> Tensor:
    """Unscale, clip, update, and the next loss scale: everything that follows a backward."""
    scale, growth_tracker, hysteresis, counters = scaler
    inv_scale = 1.0 / scale
    found_inf, norm_sq, _ = ops.grad_stats(grads, inv_scale=inv_scale)
    multiplier = ops.clip_multiplier(norm_sq, 1.0, inv_scale=inv_scale)
    ops.adamw_(
        *(params, grads, exp_avgs, exp_avg_sqs, [], [], [], [], steps, hyper, [0] * len(params)),
        grad_multiplier=multiplier,
        found_inf=found_inf,
    )
    ops.update_scale_(scale, growth_tracker, hysteresis, counters, found_inf)
    return norm_sq.sqrt()


def optimizer_state(params: list[Tensor]) -> dict[str, Any]:
    return {
        "exp_avgs": [torch.zeros_like(p) for p in params],
        "exp_avg_sqs": [torch.zeros_like(p) for p in params],
        "steps": [torch.zeros(()) for _ in params],
        "hyper": torch.tensor([[1e-2, 0.9, 0.95, 1e-8, 0.1, 0.0]], dtype=torch.float64),
        "scaler": [
            torch.tensor(8.0),
            torch.tensor(0, dtype=torch.int32),
            torch.tensor(1, dtype=torch.int32),
            torch.zeros(4, dtype=torch.int64),
        ],
    }


def test_optimizer_and_loss_scaling() -> None:
    params = [torch.randn(5, 7), torch.randn(300)]
    finite = [torch.randn_like(p) for p in params]
    overflown = [finite[0], torch.full_like(params[1], float("inf"))]

    def two_steps(run: Callable[..., Tensor]) -> list[Any]:
        mine = [p.clone() for p in params]
        state = optimizer_state(mine)
        norms = [run(mine, [g.clone() for g in grads], **state) for grads in (finite, overflown)]
        return [norms, mine, state]

    expected, actual = two_steps(adamw_step), two_steps(compiled(adamw_step))
    torch.testing.assert_close(actual, expected, equal_nan=True)
    assert expected[2]["scaler"][0].item() == 4.0  # the second step was skipped
    assert [step.item() for step in expected[2]["steps"]] == [1.0, 1.0]


class Block(nn.Module):
    def __init__(self, width: int = 32, length: int = 24) -> None:
        super().__init__()
        self.attention_norm, self.moe_norm = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, num_heads=4, num_kv_heads=2, window=8, qk_norm=True)
        self.moe = MoE(
            width,
            24,
            8,
            2,
            num_shared_experts=1,
            score="sigmoid",
            bias_update_rate=0.01,
            balance_loss_weight=0.01,
            z_loss_weight=1e-3,
        )
        cos, sin = rotary_table(length, width // 4)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), self.cos, self.sin)
        x = x + self.moe(self.moe_norm(x))
        return x.square().mean() + self.moe.aux_loss


def test_block_of_all_families() -> None:
    """Two training steps: the block is one graph, what follows its backward is another."""
    block, batches = Block(), torch.randn(2, 2, 24, 32)

    def train(forward: Callable[..., Tensor], update: Callable[..., Tensor]) -> list[Any]:
        mine = copy.deepcopy(block)
        params = list(mine.parameters())
        state = optimizer_state(params)
        norms, loads = [], []
        for x in batches:
            loss = forward(mine)(x)
            (loss * state["scaler"][0]).backward()
            grads = [p.grad for p in params]
            with torch.no_grad():
                norms.append(update(params, grads, **state))
            mine.zero_grad()
            loads.append(mine.moe.load.clone())
            mine.moe.update_bias()
        return [loss.detach(), norms, [p.detach() for p in params], loads[0], state]

    expected = train(lambda module: module, adamw_step)
    actual = train(compiled, compiled(adamw_step))
    # AdamW's first step is ±lr for any gradient: where one is almost 0, rounding picks the sign.
    torch.testing.assert_close(actual[:2], expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-3, atol=1e-3)
    assert torch.equal(actual[3], expected[3])  # later ones may differ: routing magnifies rounding
