"""The reference of rms_norm."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, weight_shift: float = 0.0
) -> Tensor:
    """As plain PyTorch writes it. 16-bit inputs are widened: their squares are not taken in 16."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(wide) * torch.rsqrt(x.to(wide).square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * (weight.to(wide) + weight_shift)
    return y.to(x.dtype)
