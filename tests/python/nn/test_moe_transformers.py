"""fulgurite.nn.MoE and Router against blocks and routers of transformers, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import (
    MixtralSparseMoeBlock,
    load_balancing_loss_func,
)
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
    router_z_loss_func,
)
from transformers.models.switch_transformers.modeling_switch_transformers import (
    load_balancing_loss_func as switch_balance_loss,
)

import fulgurite.nn.functional as F
from fulgurite.nn import MoE, routing

H, I = 16, 12


def mixtral() -> nn.Module:
    config = MixtralConfig(hidden_size=H, intermediate_size=I, num_local_experts=8)
    return MixtralSparseMoeBlock(config)


def qwen3(norm: bool) -> nn.Module:
    return Qwen3MoeSparseMoeBlock(
        Qwen3MoeConfig(
            hidden_size=H,
            moe_intermediate_size=I,
            num_experts=16,
            num_experts_per_tok=4,
            norm_topk_prob=norm,
        )
    )


def olmoe() -> nn.Module:
    return OlmoeSparseMoeBlock(
        OlmoeConfig(hidden_size=H, intermediate_size=I, num_experts=16, num_experts_per_tok=4)
    )


def deepseek_v2(method: str) -> nn.Module:
    return DeepseekV2Moe(
        DeepseekV2Config(
            hidden_size=H,
            moe_intermediate_size=I,
            n_routed_experts=24,
            num_experts=24,
            num_attention_heads=4,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            topk_method=method,
            routed_scaling_factor=16.0,
            n_shared_experts=2,
        )
    )


def deepseek_v3(norm: bool = True, n_group: int = 4, scale: float = 2.5) -> nn.Module:
    """With one group: Moonlight, Kimi-K2."""
    block = DeepseekV3MoE(
        DeepseekV3Config(
            hidden_size=H,
            moe_intermediate_size=I,
            n_routed_experts=24,
            num_experts_per_tok=4,
            n_group=n_group,
            topk_group=max(n_group // 2, 1),
            norm_topk_prob=norm,
            routed_scaling_factor=scale,
            n_shared_experts=1,
        )
    )
    block.gate.e_score_correction_bias.copy_(torch.randn(24) * 0.1)
    return block


def gpt_oss() -> nn.Module:
    return GptOssMLP(
        GptOssConfig(hidden_size=H, intermediate_size=I, num_local_experts=8, num_experts_per_tok=3)
    )


def switch(**options: Any) -> nn.Module:
    config = {"d_model": H, "d_ff": I, "num_experts": 4, "expert_capacity": 3, "dropout_rate": 0.0}
    block = SwitchTransformersSparseMLP(SwitchTransformersConfig(**config | options))
    return block.eval()  # no noise


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "mixtral": mixtral,
    "qwen3_moe": lambda: qwen3(True),
    "qwen3_moe_raw": lambda: qwen3(False),
    "olmoe": olmoe,
    "deepseek_v2": lambda: deepseek_v2("group_limited_greedy"),
    "deepseek_v2_lite": lambda: deepseek_v2("greedy"),
    "deepseek_v3": deepseek_v3,
    "deepseek_v3_raw": lambda: deepseek_v3(norm=False),
    "moonlight": lambda: deepseek_v3(n_group=1, scale=2.446),
    "kimi_k2": lambda: deepseek_v3(n_group=1, scale=2.827),
    "gpt_oss": gpt_oss,
    "switch": switch,
}


def drawn(block: nn.Module) -> nn.Module:
    """With random weights: transformers leaves some uninitialised."""
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def with_gradients(
    function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The result, and the gradients of x and every parameter for one cotangent."""
    x = x.clone().requires_grad_()
    y = function(x)
    named = {"x": x, **dict(module.named_parameters())}
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(
        y, list(named.values()), cotangent, allow_unused=True, materialize_grads=True
    )
    return y, dict(zip(named, found, strict=True))


def shared_rows(theirs: dict[str, Tensor], name: str) -> list[Tensor]:
    """Gradients of DeepSeek's wide shared layer, as those of experts of width I."""
    if "shared_experts.up_proj.weight" not in theirs:
        return []
    gate, up, down = (
        theirs[f"shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down")
    )
    if name == "w_in":
        return [torch.cat([gate.unflatten(0, (-1, I)), up.unflatten(0, (-1, I))], dim=1)]
    return [down.unflatten(1, (-1, I)).transpose(0, 1)]


def under_our_names(theirs: dict[str, Tensor], E: int) -> dict[str, Tensor]:
    """The gradients of a block of transformers as those of ``MoE``."""
    if "router.classifier.weight" in theirs:  # Switch has experts one by one
        return {
            "router.weight": theirs["router.classifier.weight"],
            "w_in": torch.stack([theirs[f"experts.expert_{e}.wi.weight"] for e in range(E)]),
            "w_out": torch.stack([theirs[f"experts.expert_{e}.wo.weight"] for e in range(E)]),
        }
    named = {
        "router.weight": theirs.get("gate.weight", theirs.get("router.weight")),
        "router.bias": theirs.get("router.bias"),
        "w_in": torch.cat([theirs["experts.gate_up_proj"], *shared_rows(theirs, "w_in")]),
        "w_out": torch.cat([theirs["experts.down_proj"], *shared_rows(theirs, "w_out")]),
        "b_in": theirs.get("experts.gate_up_proj_bias"),
        "b_out": theirs.get("experts.down_proj_bias"),
    }
    return {name: gradient for name, gradient in named.items() if gradient is not None}


def result(block: nn.Module, x: Tensor) -> Tensor:
    """Without the scores, which gpt-oss returns beside it."""
    y = block(x)
    out: Tensor = y[0] if isinstance(y, tuple) else y
    return out


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str) -> None:
    torch.manual_seed(0)
    block = drawn(BLOCKS[name]())
    module = MoE.from_transformers(block)
    x = torch.randn(2, 9, H)
    expected, theirs = with_gradients(partial(result, block), block, x)
    actual, ours = with_gradients(module, module, x)
    torch.testing.assert_close(actual, expected)
    wanted = {"x": theirs["x"], **under_our_names(theirs, module.num_experts)}
    assert wanted.keys() == ours.keys()
    for label, gradient in wanted.items():
        assert gradient.any(), label
        torch.testing.assert_close(ours[label], gradient, rtol=1e-4, atol=1e-5, msg=label)


def test_clamps_of_gpt_oss() -> None:
    """Inputs so large that both of its limits cut."""
    torch.manual_seed(0)
    block = drawn(gpt_oss())
    module = MoE.from_transformers(block)
    assert (module.alpha, module.limit) == (1.702, 7.0)
    x = torch.randn(2, 9, H) * 20
    rows = torch.einsum("th,ehi->tei", x.flatten(0, 1), module.w_in)
    assert (rows[..., ::2] > 7).any()
    assert (rows[..., 1::2].abs() > 7).any()
    expected, theirs = with_gradients(partial(result, block), block, x)
    actual, ours = with_gradients(module, module, x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)
    for label, gradient in under_our_names(theirs, module.num_experts).items():
        torch.testing.assert_close(ours[label], gradient, rtol=1e-4, atol=1e-3, msg=label)


def test_switch_drops_whole_tokens() -> None:
    """Beyond three of a sequence an expert computes nothing."""
    torch.manual_seed(0)
    block = drawn(switch())
    x = torch.randn(2, 20, H)
    y, expected = MoE.from_transformers(block)(x), block(x)
    dropped = (expected == 0).all(-1)
    assert dropped.any()
    assert not dropped.all()
    assert torch.equal((y == 0).all(-1), dropped)


def by_expert(weights: Tensor, ids: Tensor, E: int) -> Tensor:
    """(T, E): transformers does not sort the chosen experts."""
    real = ids >= 0
    dense = weights.new_zeros(weights.shape[0], E + 1)
    return dense.scatter_add(1, ids.long().where(real, torch.tensor(E)), weights)[:, :E]


@pytest.mark.parametrize("name", sorted(BLOCKS.keys() - {"switch"}))
def test_router(name: str) -> None:
    torch.manual_seed(0)
    block = drawn(BLOCKS[name]())
    gate = block.router if name == "gpt_oss" else block.gate
    router = MoE.from_transformers(block).router
    E = router.num_experts

    def expected(x: Tensor) -> Tensor:
        _, weights, ids = gate(x)
        return by_expert(weights, ids, E)

    x = torch.randn(40, H)
    theirs, their_gradients = with_gradients(expected, gate, x)
    ours, our_gradients = with_gradients(lambda x: by_expert(*router(x), E), router, x)
    torch.testing.assert_close(ours, theirs)
    assert our_gradients.keys() == their_gradients.keys()
    for label, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[label], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("router_bias", [False, True])
def test_switch_router(router_bias: bool) -> None:
    """Three places for each expert and sequence."""
    torch.manual_seed(0)
    block = drawn(switch(router_bias=router_bias))
    router = MoE.from_transformers(block).router

    def expected(x: Tensor) -> Tensor:
        mask, probabilities, _ = block.router(x)
        return (mask * probabilities).flatten(0, 1)

    x = torch.randn(3, 20, H)
    theirs, their_gradients = with_gradients(expected, block.router, x)
    ours, our_gradients = with_gradients(lambda x: by_expert(*router(x), 4), router, x)
    assert (theirs == 0).all(1).any()  # some are dropped
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        our_gradients["weight"], their_gradients["classifier.weight"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("mixtral", mixtral),
        ("qwen3_moe", BLOCKS["qwen3_moe"]),
        ("olmoe", olmoe),
        ("deepseek_v2", BLOCKS["deepseek_v2"]),
        ("deepseek_v3", deepseek_v3),
        ("moonlight", BLOCKS["moonlight"]),
        ("kimi_k2", BLOCKS["kimi_k2"]),
        ("gpt_oss", gpt_oss),
        ("switch", switch),
    ],
)
def test_names_agree_with_blocks(name: str, block: Callable[[], nn.Module]) -> None:
    """Beyond sizes and losses, a routing by name is what is read from the model's own block."""
    read = MoE.from_transformers(block()).router
    sizes = {"num_experts": read.num_experts, "top_k": read.top_k}
    sizes |= {"num_groups": read.num_groups, "top_groups": read.top_groups}
    made = MoE(H, I, **routing(name, **sizes)).router
    for option in ("score", "renormalize", "routed_scale", "group_score", "jitter", "per_sequence"):
        assert getattr(read, option) == getattr(made, option), option
    assert (read.bias is None) == (made.bias is None)
    assert (read.selection_bias is None) == (made.selection_bias is None)
    assert (read.capacity is None) == (made.capacity_factor is None)


def test_losses_of_transformers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, 8, requires_grad=True)
    _, ids, _ = F.moe_route(logits, 2)
    losses = {
        "hf": (
            F.moe_balance_loss(logits, ids, kind="hf"),
            load_balancing_loss_func((logits,), 8, 2),
        ),
        "switch": (
            F.moe_balance_loss(logits, ids[:, :1]),
            switch_balance_loss(logits.softmax(-1)[None], ids[None, :, :1].long()),
        ),
        "z": (F.moe_z_loss(logits), router_z_loss_func(logits[None])),
    }
    for actual, expected in losses.values():
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, logits), torch.autograd.grad(expected, logits)
        )


def test_a_copy_shares_nothing() -> None:
    block = drawn(mixtral()).double().eval()
    module = MoE.from_transformers(block)
    assert not module.training
    assert module.w_in.dtype == torch.float64
    before = module.w_in.clone()
    with torch.no_grad():
        block.experts.gate_up_proj.zero_()
    assert torch.equal(module.w_in, before)


def test_mixtrals_noise_reaches_router_and_experts() -> None:
    config = MixtralConfig(hidden_size=H, intermediate_size=I, router_jitter_noise=0.1)
    block = drawn(MixtralSparseMoeBlock(config)).double().train()
    module = MoE.from_transformers(block)
    x = torch.randn(2, 5, H, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ours = module(x)
        torch.manual_seed(3)
        theirs = block(x.clone())  # writes the noise into its input
        assert not torch.equal(module(x), ours)
    torch.testing.assert_close(ours, theirs)
    module.eval()
    assert torch.equal(module(x), module(x))
    with pytest.raises(ValueError, match=r"expected input_jitter in \[0, 1\), got 1\.5"):
        MoE(H, I, 4, 2, input_jitter=1.5)


def test_what_has_no_counterpart_raises() -> None:
    with pytest.raises(TypeError, match=r"expected one of MixtralSparseMoeBlock, .*, got Linear"):
        MoE.from_transformers(nn.Linear(2, 2))
    config = MixtralConfig(hidden_size=H, intermediate_size=I, hidden_act="tanh")
    with pytest.raises(NotImplementedError, match="no activation here for Tanh"):
        MoE.from_transformers(MixtralSparseMoeBlock(config))
