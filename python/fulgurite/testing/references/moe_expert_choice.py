"""Reference of expert choice. T tokens, E experts, C tokens per expert."""

from __future__ import annotations

import torch
from torch import Tensor

from fulgurite.testing.references.moe import ranking


def moe_route_expert_choice(logits: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """(weights, token_ids), both (E, C): every expert ranks all tokens."""
    E = logits.shape[1]
    # 16-bit logits are routed in float32; this function also runs in their dtype, as a yardstick.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    scores = torch.softmax(wide, dim=1).T  # (E, T)
    rows = [ranking(row)[:capacity] for row in scores.tolist()]
    token_ids = torch.tensor(rows, dtype=torch.int64, device=logits.device).reshape(E, capacity)
    return scores.gather(1, token_ids), token_ids.to(torch.int32)
