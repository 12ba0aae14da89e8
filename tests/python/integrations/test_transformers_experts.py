"""The experts function of transformers' interface, against the one of transformers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations import moe

from fulgurite.integrations.transformers.experts import experts
from seen import Seen

T, E, K, H, W = 7, 4, 2, 6, 5


def layer(
    act_fn: nn.Module, gate: Callable[..., Tensor] | None = None, **how: bool
) -> tuple[Any, list[Tensor]]:
    """A module like those that use_experts_implementation makes, and its weights."""
    options = {
        "has_gate": True,
        "has_bias": False,
        "is_transposed": False,
        "is_concatenated": True,
        "has_post_expert_norm": False,
    } | how
    rows = 2 * W if options["has_gate"] else W
    shapes = [(E, rows, H), (E, H, W)]
    if options["is_transposed"]:
        shapes = [(E, H, rows), (E, W, H)]
    shapes += [(E, rows), (E, H)] if options["has_bias"] else []
    weights = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    name = "gate_up_proj" if options["has_gate"] else "up_proj"
    names = (name, "down_proj", f"{name}_bias", "down_proj_bias")
    members = {"_apply_gate": gate or moe._default_apply_gate}
    module = type("Layer", (SimpleNamespace,), members)(act_fn=act_fn, num_experts=E, **options)
    module.__dict__.update(zip(names, weights, strict=False))
    module._is_expert_parallel = True
    return module, weights


def interleaved_gate(self: Any, gate_up: Tensor) -> Tensor:
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    return self.act_fn(gate.clamp(max=2.0)) * (up + 0.5)


LAYERS = {
    "silu": (nn.SiLU(), None, {}),
    "silu of transformers": (ACT2FN["silu"], None, {}),
    "gelu": (ACT2FN["gelu"], None, {"has_bias": True}),
    "transposed": (nn.SiLU(), None, {"is_transposed": True, "has_bias": True}),
    "not gated": (ACT2FN["relu2"], None, {"has_gate": False}),
    "an activation of no operator": (nn.Mish(), None, {"has_bias": True}),
    "not gated, of no operator": (nn.Tanh(), None, {"has_gate": False}),
    "a gate of its own": (nn.SiLU(), interleaved_gate, {"is_concatenated": False}),
    "a gate of its own, transposed": (
        nn.SiLU(),
        interleaved_gate,
        {"is_concatenated": False, "is_transposed": True, "has_bias": True},
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_experts_of_every_kind(case: str) -> None:
    act_fn, gate, how = LAYERS[case]
    module, weights = layer(act_fn, gate, **how)
    x = torch.randn(T, H, dtype=torch.float64, requires_grad=True)
    routing = torch.rand(T, K, dtype=torch.float64)
    ids = torch.randint(0, E, (T, K))
    ids[2] = E  # of an expert elsewhere, whose weight is 0 there
    routing[2] = 0.0
    routing.requires_grad_()
    inputs = (x, routing, *weights)
    expected = moe.batched_mm_experts_forward(module, x, ids, routing)
    with Seen() as seen:
        got = experts(module, x, ids, routing)
        incoming = torch.randn_like(got)
        mine = torch.autograd.grad(got, inputs, incoming)
    torch.testing.assert_close(got, expected)
    for a, b in zip(mine, torch.autograd.grad(expected, inputs, incoming), strict=True):
        torch.testing.assert_close(a, b)
    fused = gate is None and "no operator" not in case
    assert seen.count("moe_experts", "_moe_experts_forward") == fused
    assert seen.count("moe_grouped_mm") == (0 if fused else 2)


@pytest.mark.full
@pytest.mark.parametrize("case", LAYERS)
def test_compiled_experts(case: str) -> None:
    act_fn, gate, how = LAYERS[case]
    module, _ = layer(act_fn, gate, **how)
    inputs = torch.randn(T, H).double(), torch.randint(0, E, (T, K)), torch.rand(T, K)
    torch._dynamo.reset()
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(module, *inputs), experts(module, *inputs))


def test_experts_in_autocast_and_with_routing_of_other_dtypes() -> None:
    module, _ = layer(nn.SiLU())
    module.gate_up_proj, module.down_proj = (
        w.detach().float() for w in (module.gate_up_proj, module.down_proj)
    )
    x, ids = torch.randn(T, H), torch.randint(0, E, (T, K))
    expected = experts(module, x, ids, torch.full((T, K), 0.5))
    half = torch.full((T, K), 0.5, dtype=torch.float16)
    torch.testing.assert_close(experts(module, x, ids, half), expected)
    with torch.autocast("cpu", torch.bfloat16):
        got = experts(module, x, ids, half.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_a_norm_behind_every_expert_raises() -> None:
    module, _ = layer(nn.SiLU(), has_post_expert_norm=True)
    with pytest.raises(NotImplementedError, match='experts_implementation="grouped_mm"'):
        experts(module, torch.randn(T, H), torch.zeros(T, K), torch.zeros(T, K))
