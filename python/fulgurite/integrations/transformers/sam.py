"""The attention of SAM's vision towers, by ``attention``.

The decomposed relative position bias is extra width of query and key, not a tensor of N·N.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionSdpaAttention
from transformers.models.sam_hq.modeling_sam_hq import (
    SamHQVisionAttention,
    SamHQVisionSdpaAttention,
)

from fulgurite.integrations.transformers.classes import no_weights
from fulgurite.nn import decomposed_bias_inputs
from fulgurite.nn import functional as F

Result = tuple[Tensor, None]  # no weights


def vision(layer: Any, hidden_states: Tensor, dropout: float) -> Tensor:
    """forward of all of them: (B, height, width, H) to the same."""
    _, height, width, _ = hidden_states.shape
    qkv = layer.qkv(hidden_states).flatten(1, 2)  # (B, N, 3·Hq·D)
    qkv = qkv.unflatten(2, (3, layer.num_attention_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, Hq, N, D)
    scale = layer.scale
    if layer.use_rel_pos:
        query, key = decomposed_bias_inputs(
            query, key, layer.rel_pos_h, layer.rel_pos_w, (height, width), scale=scale
        )
        scale = 1.0
    out = F.attention(query, key, value, scale=scale, dropout_p=dropout if layer.training else 0.0)
    out = out.transpose(1, 2).flatten(2).unflatten(1, (height, width))
    projected: Tensor = layer.proj(out)
    return projected


class SamVision(SamVisionAttention):
    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> Result:
        no_weights(self, output_attentions)
        return vision(self, hidden_states, self.dropout), None


class SamVisionSdpa(SamVisionSdpaAttention):
    """Without dropout, like the class that it serves."""

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> Result:
        no_weights(self, output_attentions)
        return vision(self, hidden_states, 0.0), None


class SamHQVision(SamHQVisionAttention):
    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> Result:
        no_weights(self, output_attentions)
        return vision(self, hidden_states, self.dropout), None


class SamHQVisionSdpa(SamHQVisionSdpaAttention):
    """Without dropout, like the class that it serves."""

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> Result:
        no_weights(self, output_attentions)
        return vision(self, hidden_states, 0.0), None
