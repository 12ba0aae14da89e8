"""The experts function of transformers' interface, by ``moe_experts``.

Legend: T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fulgurite.integrations.transformers.blocks import ACTIVATIONS
from fulgurite.nn import functional as F

# What a layer says of itself, put there by transformers' decorator.
OPTIONS = frozenset(
    ["has_bias", "has_gate", "has_post_expert_norm", "is_concatenated", "is_transposed"]
)
NAME = "fulgurite: experts of transformers"
DEFAULT_GATE = ("transformers.integrations.moe", "_default_apply_gate")
SWIGLU_OAI = ("transformers.models.gpt_oss.modeling_gpt_oss", "GptOssExperts._apply_gate")


def experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What ``experts_implementation="fulgurite"`` calls.

    Args:
        module: holds ``gate_up_proj`` or ``up_proj``, ``down_proj``, their biases, and what says
            how they lie.
        hidden_states: (T,H).
        top_k_index: (T,K) int64; an id outside [0, E) contributes nothing.
        top_k_weights: (T,K).

    Returns:
        (T,H) in hidden_states' dtype.

    Raises:
        NotImplementedError: a norm behind every expert.
    """
    if module.has_post_expert_norm:
        raise NotImplementedError(
            f"{NAME}: {type(module).__name__} has a norm behind every expert,"
            ' use experts_implementation="grouped_mm"'
        )
    name = "gate_up_proj" if module.has_gate else "up_proj"
    tensors = {
        "w_in": getattr(module, name),
        "w_out": module.down_proj,
        "b_in": getattr(module, f"{name}_bias") if module.has_bias else None,
        "b_out": module.down_proj_bias if module.has_bias else None,
    }
    weights = as_routing(top_k_weights, hidden_states)
    activation = activation_of(module)
    if activation is None:
        y = in_parts(module, hidden_states, top_k_index, weights, **tensors)
    else:
        y = F.moe_experts(
            hidden_states,
            top_k_index,
            weights,
            **tensors,
            **activation,
            gated=module.has_gate,
            interleaved=module.has_gate and not module.is_concatenated,
            transposed=module.is_transposed,
        )
    return y.to(hidden_states.dtype)


def activation_of(module: Any) -> dict[str, Any] | None:
    """Options of ``moe_experts`` for the module's gate; None if it has none for it."""
    if module.has_gate:
        gate = type(module)._apply_gate
        place = (gate.__module__, gate.__qualname__)
        if place == SWIGLU_OAI:
            return {"activation": "swiglu_oai", "alpha": module.alpha, "limit": module.limit}
        if place != DEFAULT_GATE:
            return None
    name = ACTIVATIONS.get(type(module.act_fn).__name__)
    return None if name is None else {"activation": name}


def in_parts(
    module: Any,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
) -> Tensor:
    """The experts with the module's own gate between the products of all of them."""
    transposed = module.is_transposed
    permutation, inverse, offsets = F.moe_plan(ids, w_in.shape[0])
    rows = F.moe_permute(x, permutation, inverse)
    hidden = F.moe_grouped_mm(rows, w_in, offsets, b_in, transposed)
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    y = F.moe_grouped_mm(hidden, w_out, offsets, b_out, transposed)
    return F.moe_combine(y, inverse, weights)


def as_routing(weights: Tensor, x: Tensor) -> Tensor:
    """Routing weights in a dtype that the operator takes beside x."""
    if weights.dtype in (x.dtype, torch.float32, torch.float64):
        return weights
    return weights.to(torch.float32)
