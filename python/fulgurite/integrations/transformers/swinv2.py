"""Swin V2's window attention, by ``attention``."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

from fulgurite.integrations.transformers.attention import as_scores
from fulgurite.integrations.transformers.classes import no_weights
from fulgurite.integrations.transformers.versions import wrong_version
from fulgurite.nn import functional as F

LARGEST_SCALE = math.log(1.0 / 0.01)
ADDS_MASK = "+ attention_mask.unsqueeze(1).unsqueeze(0)"
TIMES = 2  # that the released layer adds the shift mask


class Swinv2(Swinv2SelfAttention):
    """Cosine attention: unit queries and keys, a learned scale for each head, a learned bias."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor]:
        no_weights(self, output_attentions)
        heads = (*hidden_states.shape[:2], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            layer(hidden_states).view(heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        query, key = (torch.nn.functional.normalize(x, dim=-1) for x in (query, key))
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp()  # (Hq, 1, 1)
        bias = self.position_bias()
        if attention_mask is not None:  # (windows, N, N)
            bias = bias + TIMES * attention_mask.unsqueeze(1)
        out = F.attention(
            (query * scale).to(value.dtype),
            key.to(value.dtype),
            value,
            bias=as_scores(bias, value),
            scale=1.0,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return (out.transpose(1, 2).flatten(2),)

    @staticmethod
    def check(_module: Any) -> None:
        """Raise for a release that adds the shift mask another number of times."""
        times = inspect.getsource(Swinv2SelfAttention.forward).count(ADDS_MASK)
        if times != TIMES:
            raise wrong_version(
                f"whose Swinv2SelfAttention adds its mask {times} times, not {TIMES}:"
                " pass attention=False"
            )

    def position_bias(self) -> Tensor:
        """(1, Hq, N, N), from the table that the layer's small network computes."""
        N = self.window_size[0] * self.window_size[1]
        table = self.continuous_position_bias_mlp(self.relative_coords_table)
        table = table.view(-1, self.num_attention_heads)
        bias = table[self.relative_position_index.view(-1)].view(1, N, N, -1).permute(0, 3, 1, 2)
        spread: Tensor = 16 * bias.sigmoid()
        return spread
