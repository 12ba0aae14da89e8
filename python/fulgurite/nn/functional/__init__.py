"""One typed, scriptable function for each operator."""

from fulgurite.nn.functional.attention import attention, rope
from fulgurite.nn.functional.attention_cache import (
    attention_decode,
    attention_merge,
    attention_varlen,
)
from fulgurite.nn.functional.features import favor_features, orthogonal_projection
from fulgurite.nn.functional.linear_attention import linear_attention
from fulgurite.nn.functional.moe import (
    moe_balance_loss,
    moe_combine,
    moe_permute,
    moe_plan,
    moe_route,
    moe_update_bias_,
    moe_z_loss,
)
from fulgurite.nn.functional.moe_expert_choice import moe_route_expert_choice
from fulgurite.nn.functional.moe_experts import moe_experts, moe_grouped_mm
from fulgurite.nn.functional.norms import rms_norm
from fulgurite.nn.functional.scans import causal_conv1d, selective_scan

__all__ = [
    "attention",
    "attention_decode",
    "attention_merge",
    "attention_varlen",
    "causal_conv1d",
    "favor_features",
    "linear_attention",
    "moe_balance_loss",
    "moe_combine",
    "moe_experts",
    "moe_grouped_mm",
    "moe_permute",
    "moe_plan",
    "moe_route",
    "moe_route_expert_choice",
    "moe_update_bias_",
    "moe_z_loss",
    "orthogonal_projection",
    "rms_norm",
    "rope",
    "selective_scan",
]
