"""What the mixture-of-experts blocks of transformers 5 hold, as options and weights of ``MoE``.

Blocks are told by the names of their classes: transformers itself is not imported.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fulgurite.integrations.transformers.plain import refuse_adapted

Parts = tuple[dict[str, Any], dict[str, Tensor]]  # options of MoE, its state dict

ACTIVATIONS = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "ReLU": "relu",
    "ReLUSquaredActivation": "relu2",
}


def activation_of(function: Any) -> str:
    name = type(function).__name__
    if name not in ACTIVATIONS:
        raise NotImplementedError(f"MoE.from_transformers: no activation here for {name}")
    return ACTIVATIONS[name]


def refuse(block: Any, option: str, value: Any) -> None:
    """Raise for an option of the block that has no counterpart."""
    if value:
        name = type(block).__name__
        raise NotImplementedError(
            f"MoE.from_transformers: {option}={value} of {name} is not supported"
        )


def gated_experts(block: Any, gate: Any) -> Parts:
    """Experts in stacked tensors, gate rows then up rows, and a gate without bias."""
    experts = block.experts
    E, rows, dim = experts.gate_up_proj.shape
    options = {
        "dim": dim,
        "hidden_dim": rows // 2,
        "num_experts": E,
        "top_k": gate.top_k,
        "activation": activation_of(experts.act_fn),
    }
    state = {
        "router.weight": gate.weight,
        "w_in": experts.gate_up_proj,
        "w_out": experts.down_proj,
    }
    return options, state


def mixtral(block: Any) -> Parts:
    options, state = gated_experts(block, block.gate)
    return options | {"input_jitter": block.jitter_noise}, state


def softmax_over_all(block: Any) -> Parts:
    """Qwen3-MoE, OLMoE."""
    options, state = gated_experts(block, block.gate)
    return options | {"renormalize": bool(block.gate.norm_topk_prob)}, state


def with_shared(block: Any, parts: Parts) -> Parts:
    """The wide shared layer of a DeepSeek block as experts of the routed ones' width."""
    options, state = parts
    shared, hidden_dim = block.shared_experts, options["hidden_dim"]
    for name in ("gate_proj", "up_proj", "down_proj"):
        refuse_adapted(getattr(shared, name), f"MoE.from_transformers: {name}")
    count = shared.gate_proj.out_features // hidden_dim
    gate = shared.gate_proj.weight.unflatten(0, (count, hidden_dim))  # (S, I, H)
    up = shared.up_proj.weight.unflatten(0, (count, hidden_dim))
    down = shared.down_proj.weight.unflatten(1, (count, hidden_dim)).transpose(0, 1)  # (S, H, I)
    state["w_in"] = torch.cat([state["w_in"], torch.cat([gate, up], dim=1)])
    state["w_out"] = torch.cat([state["w_out"], down])
    return options | {"num_shared_experts": count}, state


def groups(gate: Any) -> dict[str, int]:
    return {"num_groups": gate.num_group or 1, "top_groups": gate.topk_group or 1}


def deepseek_v2(block: Any) -> Parts:
    gate = block.gate
    limited = gate.topk_method == "group_limited_greedy"
    options, state = with_shared(block, gated_experts(block, gate))
    options |= {
        "renormalize": False,
        "routed_scale": float(gate.routed_scaling_factor),
        "group_score": "max",
    }
    return options | (groups(gate) if limited else {}), state


def deepseek_v3(block: Any) -> Parts:
    gate = block.gate
    options, state = with_shared(block, gated_experts(block, gate))
    options |= {
        "score": "sigmoid",
        "renormalize": bool(gate.norm_topk_prob),
        "routed_scale": float(gate.routed_scaling_factor),
        "selection_bias": True,
        **groups(gate),
    }
    return options, state | {"router.selection_bias": gate.e_score_correction_bias}


def gpt_oss(block: Any) -> Parts:
    router, experts = block.router, block.experts
    E, dim, rows = experts.gate_up_proj.shape
    options = {
        "dim": dim,
        "hidden_dim": rows // 2,
        "num_experts": E,
        "top_k": router.top_k,
        "score": "softmax_topk",
        "bias": True,
        "activation": "swiglu_oai",
        "interleaved": True,
        "transposed": True,
        "alpha": float(experts.alpha),
        "limit": float(experts.limit),
        "expert_bias": True,
    }
    state = {
        "router.weight": router.weight,
        "router.bias": router.bias,
        "w_in": experts.gate_up_proj,
        "w_out": experts.down_proj,
        "b_in": experts.gate_up_proj_bias,
        "b_out": experts.down_proj_bias,
    }
    return options, state


def switch(block: Any) -> Parts:
    router, experts = block.router, list(block.experts.values())
    refuse_adapted(router.classifier, "MoE.from_transformers: classifier", bias=True)
    for expert in experts:
        refuse_adapted(expert.wi, "MoE.from_transformers: wi")
        refuse_adapted(expert.wo, "MoE.from_transformers: wo")
    w_in = torch.stack([expert.wi.weight for expert in experts])  # (E, I, H)
    options = {
        "dim": w_in.shape[2],
        "hidden_dim": w_in.shape[1],
        "num_experts": w_in.shape[0],
        "top_k": 1,
        "bias": router.classifier.bias is not None,
        "renormalize": False,
        "capacity": router.expert_capacity,
        "per_sequence": True,
        "jitter": router.jitter_noise,
        "activation": activation_of(experts[0].act),
        "gated": False,
    }
    state = {
        "router.weight": router.classifier.weight,
        "w_in": w_in,
        "w_out": torch.stack([expert.wo.weight for expert in experts]),
    }
    if router.classifier.bias is not None:
        state["router.bias"] = router.classifier.bias
    return options, state


BLOCKS: dict[str, Callable[[Any], Parts]] = {
    "MixtralSparseMoeBlock": mixtral,
    "Qwen3MoeSparseMoeBlock": softmax_over_all,
    "OlmoeSparseMoeBlock": softmax_over_all,
    "DeepseekV2Moe": deepseek_v2,
    "DeepseekV3MoE": deepseek_v3,
    "GptOssMLP": gpt_oss,
    "SwitchTransformersSparseMLP": switch,
}


@torch.no_grad()
def block_parts(block: nn.Module) -> Parts:
    """Options of ``MoE`` and its state dict, from a block of transformers."""
    name = type(block).__name__
    if name not in BLOCKS:
        raise TypeError(f"MoE.from_transformers: expected one of {', '.join(BLOCKS)}, got {name}")
    return BLOCKS[name](block)
