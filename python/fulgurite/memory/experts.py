"""How wide the feed-forward layers of a model with experts are, from its configuration.

Names differ from model to model; these are the ones of transformers 5, with the models whose code
says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Read = Callable[..., int]  # the first of some names that the configuration has, or the default

_VISITED = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERT_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size")
# Experts that every token visits: the width of all together (Qwen2-MoE, Granite, Nemotron-H, Step),
# or how many of the routed ones' width (DeepSeek, GLM, Ernie, Aria, EXAONE).
_SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "shared_experts_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "share_expert_dim",
)
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
# One of the width of a layer without experts, which no name tells.
_ALWAYS_SHARED = ("llama4", "llama4_text", "hunyuan_v1_moe")


def visited_width(config: dict[str, Any], read: Read, wide: int) -> int:
    """Sum of the widths of the experts that one token visits; ``wide`` without experts.

    Args:
        config: of the model.
        read: of it.
        wide: width of a layer without experts.
    """
    width = read(*_EXPERT_WIDTH, default=wide)
    visited = read(*_VISITED, default=0) if read(*_EXPERTS, default=1) > 0 else 0
    shared = read(*_SHARED_WIDTH, default=0) or width * read(*_SHARED, default=0)
    if visited and (config.get("model_type") in _ALWAYS_SHARED or config.get("enable_moe_block")):
        shared += wide  # Gemma 4's dense layer runs beside the experts
    return visited * width + shared or wide


def dense_layers(config: dict[str, Any], read: Read, layers: int) -> int:
    """How many of the layers have no experts, in a model that has some."""
    if read(*_VISITED, default=0) == 0 or read(*_EXPERTS, default=1) == 0:
        return 0
    kinds = config.get("mlp_layer_types")
    if kinds is not None:
        return sum(kind == "dense" for kind in kinds[:layers])
    return sum(not _has_experts(config, read, layer, layers) for layer in range(layers))


def _has_experts(config: dict[str, Any], read: Read, layer: int, layers: int) -> bool:
    """By every rule that the configuration has: the first layers, some by number, every n-th."""
    chosen, frequency = config.get("moe_layers"), config.get("moe_layer_freq")
    if chosen:  # Llama 4
        return layer in chosen
    if isinstance(frequency, list):  # MiMo
        return bool(frequency[layer])
    last = read("moe_layer_end_index", default=-1)  # Ernie
    return (
        layer >= read("first_k_dense_replace", "num_dense_layers", default=0)  # DeepSeek, LFM2
        and layer % (frequency or 1) == 0
        and layer not in (config.get("mlp_only_layers") or ())  # Qwen
        and (layer + 1) % read("decoder_sparse_step", default=1) == 0
        and (layer + 1) % read("interleave_moe_layer_step", default=1) == 0
        and layer % read("expert_layer_period", default=1)
        == read("expert_layer_offset", default=0)  # Jamba
        and (layer + 1) % read("moe_layer_interval", default=1) == 0
        and read("moe_layer_start_index", default=0) <= layer <= (layers - 1 if last < 0 else last)
    )
