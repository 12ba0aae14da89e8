"""Forward mode of routing and of the experts, against differences; elsewhere it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

import fulgurite.nn.functional as F
from fulgurite.nn import MoE

T, E, K, H, I = 7, 4, 2, 6, 5


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check(f: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Every input moves alone, and all of them together."""
    directions = [drawn(90 + i, *x.shape) for i, x in enumerate(inputs)]
    moving = [
        [d if i == j else 0 * d for j, d in enumerate(directions)] for i in range(len(inputs))
    ]
    for way in [*moving, directions]:
        step = 1e-6
        ahead = f(*(x + step * d for x, d in zip(inputs, way, strict=True)))
        behind = f(*(x - step * d for x, d in zip(inputs, way, strict=True)))
        value, tangent = torch.func.jvp(f, inputs, tuple(way))
        torch.testing.assert_close(value, f(*inputs), rtol=0, atol=0)
        torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


ROUTERS: list[dict[str, Any]] = [
    {},
    {"renormalize": False, "scale": 2.5},
    {"score": "softmax_topk"},
    {"score": "sigmoid"},
    {"score": "sigmoid", "renormalize": False, "n_group": 2, "topk_group": 1},
    {"score": "sqrtsoftplus", "scale": 0.5},
    {"token_mask": torch.arange(T) != 3},
    {"forced_ids": torch.arange(T * K).reshape(T, K) % (E + 1)},
]


@pytest.mark.parametrize("options", ROUTERS, ids=lambda options: ",".join(options) or "default")
def test_route(options: dict[str, Any]) -> None:
    check(lambda logits: F.moe_route(logits, K, **options)[0], drawn(0, T, E))


EXPERTS: list[dict[str, Any]] = [
    *({"activation": name} for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")),
    {"activation": "swiglu_oai", "alpha": 1.7, "limit": 0.5, "interleaved": True},
    {"gated": False, "activation": "gelu"},
    {"interleaved": True, "transposed": True},
]


@pytest.mark.parametrize("options", EXPERTS, ids=lambda o: ",".join(map(str, o.values())))
def test_experts(options: dict[str, Any]) -> None:
    ids = torch.arange(T * K).reshape(T, K) % (E + 1)  # one of them a sentinel
    width = 2 * I if options.get("gated", True) else I
    w_in, w_out = drawn(1, E, width, H), drawn(2, E, H, I)
    if options.get("transposed"):
        w_in, w_out = w_in.mT.contiguous(), w_out.mT.contiguous()

    def experts(
        x: Tensor, w: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor, b_out: Tensor
    ) -> Tensor:
        return F.moe_experts(x, ids, w, w_in, w_out, b_in=b_in, b_out=b_out, **options)

    check(experts, drawn(3, T, H), drawn(4, T, K), w_in, w_out, drawn(5, E, width), drawn(6, E, H))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dual_numbers(dtype: torch.dtype) -> None:
    logits, direction = drawn(0, T, E).to(dtype), drawn(1, T, E).to(dtype)
    expected = torch.func.jvp(lambda x: F.moe_route(x, K)[0], (logits,), (direction,))[1]
    with fwAD.dual_level():
        weights = F.moe_route(fwAD.make_dual(logits, direction), K)[0]
        torch.testing.assert_close(fwAD.unpack_dual(weights).tangent, expected)


def test_a_frozen_module() -> None:
    moe = MoE(H, I, E, K).double().requires_grad_(False).eval()
    check(moe, drawn(0, T, H))


def test_what_has_none_raises() -> None:
    logits, ids = drawn(0, T, E), torch.zeros(T, K, dtype=torch.int32)
    with fwAD.dual_level():
        dual = fwAD.make_dual(logits, torch.ones_like(logits))
        for call in (
            lambda: F.moe_balance_loss(dual, ids),
            lambda: F.moe_z_loss(dual),
            lambda: F.moe_route_expert_choice(dual, 2),
        ):
            with pytest.raises(RuntimeError, match="jvp is not implemented"):
                call()


def test_a_tangent_of_the_gradient_is_not_dropped() -> None:
    logits = drawn(0, T, E).requires_grad_()
    weights = F.moe_route(logits, K)[0]
    with fwAD.dual_level():
        dual = fwAD.make_dual(torch.ones_like(weights), torch.ones_like(weights))
        with pytest.raises(RuntimeError, match=r"not implemented|does not support"):
            torch.autograd.grad(weights, logits, dual)
