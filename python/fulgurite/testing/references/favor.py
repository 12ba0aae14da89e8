"""The reference of random features."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def favor_features(
    x: Tensor,
    projection: Tensor,
    *,
    is_query: bool,
    eps: float = 1e-4,
    kind: str = "positive",
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Every sequence by itself; a maximum passes NaN over, and has no gradient."""
    N, D = x.shape[2:]
    scaled = x * D**-0.25
    p = scaled @ projection.to(x.dtype).T
    p = torch.cat([p, -p], -1) if kind == "hyperbolic" else p
    if p.numel() == 0:
        return p
    exponents = p - scaled.square().sum(-1, keepdim=True) / 2
    seen = p.detach().masked_fill(p.isnan(), -torch.inf)
    bounds = [0, N] if cu_seqlens is None else cu_seqlens.tolist()
    rows = []
    for a, b in pairwise(bounds):
        most = seen[:, :, a:b].amax(-1, keepdim=True)
        if not is_query and b > a:
            most = most.amax(-2, keepdim=True)
        rows.append(p.shape[-1] ** -0.5 * ((exponents[:, :, a:b] - most).exp() + eps))
    return torch.cat([*rows, p[:, :, bounds[-1] :] * 0], 2)
