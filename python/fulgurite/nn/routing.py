"""The routing of published models, by name."""

from typing import Any

_DEEPSEEK_V3 = {
    "score": "sigmoid",
    "bias_update_rate": 1e-3,
    "balance_loss_kind": "sequence",
    "balance_loss_weight": 1e-4,
}

ROUTINGS: dict[str, dict[str, Any]] = {
    # "Switch Transformers", Fedus et al. 2021, and its configuration in transformers
    "switch": {
        "num_experts": 128,
        "top_k": 1,
        "renormalize": False,
        "capacity_factor": 1.25,
        "per_sequence": True,
        "jitter": 1e-2,
        "balance_loss_weight": 1e-2,
    },
    # "GShard", Lepikhin et al. 2020: 2·N/E places, first choices before second ones, which are used
    # at random.
    "gshard": {
        "num_experts": 2048,
        "top_k": 2,
        "capacity_factor": 1.0,
        "drop": "choice",
        "random_second": True,
        "balance_loss_kind": "gshard",
        "balance_loss_weight": 1e-2,
    },
    # mistralai/Mixtral-8x7B-v0.1
    "mixtral": {
        "num_experts": 8,
        "top_k": 2,
        "balance_loss_kind": "hf",
        "balance_loss_weight": 0.02,
    },
    # deepseek-ai/DeepSeek-V2
    "deepseek_v2": {
        "num_experts": 160,
        "top_k": 6,
        "renormalize": False,
        "routed_scale": 16.0,
        "num_groups": 8,
        "top_groups": 3,
        "group_score": "max",
        "balance_loss_kind": "sequence",
        "balance_loss_weight": 0.003,
    },
    # deepseek-ai/DeepSeek-V3
    "deepseek_v3": {
        **_DEEPSEEK_V3,
        "num_experts": 256,
        "top_k": 8,
        "routed_scale": 2.5,
        "num_groups": 8,
        "top_groups": 4,
    },
    # moonshotai/Moonlight-16B-A3B
    "moonlight": {**_DEEPSEEK_V3, "num_experts": 64, "top_k": 6, "routed_scale": 2.446},
    # moonshotai/Kimi-K2-Base
    "kimi_k2": {**_DEEPSEEK_V3, "num_experts": 384, "top_k": 8, "routed_scale": 2.827},
    # Qwen/Qwen3-30B-A3B and Qwen/Qwen3-235B-A22B
    "qwen3_moe": {
        "num_experts": 128,
        "top_k": 8,
        "balance_loss_kind": "hf",
        "balance_loss_weight": 1e-3,
    },
    # allenai/OLMoE-1B-7B-0924
    "olmoe": {
        "num_experts": 64,
        "top_k": 8,
        "renormalize": False,
        "balance_loss_kind": "hf",
        "balance_loss_weight": 1e-2,
        "z_loss_weight": 1e-3,
    },
    # openai/gpt-oss-20b; the 120b has 128 experts
    "gpt_oss": {
        "num_experts": 32,
        "top_k": 4,
        "bias": True,
        "score": "softmax_topk",
    },
}


def routing(name: str, **changes: Any) -> dict[str, Any]:
    """The options that :class:`Router` and :class:`MoE` take to route as a published model does.

    Args:
        name: "switch", "gshard", "mixtral", "deepseek_v2", "deepseek_v3", "moonlight", "kimi_k2",
            "qwen3_moe", "olmoe" or "gpt_oss".
        **changes: options in place of the published ones, such as fewer experts.

    Returns:
        num_experts, top_k and what differs from :class:`Router`'s defaults. Losses are those
        that its authors publish.

    Raises:
        ValueError: another name.

    >>> from fulgurite.nn import MoE
    >>> moe = MoE(16, 32, num_shared_experts=1, **routing("deepseek_v3", num_experts=64))
    >>> moe.router
    Router(dim=16, num_experts=64, top_k=8, score='sigmoid')
    """
    if name not in ROUTINGS:
        raise ValueError(f"routing: expected one of {', '.join(ROUTINGS)}, got {name!r}")
    return ROUTINGS[name] | changes
