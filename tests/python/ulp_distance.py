"""Distances in units of the last place."""

from __future__ import annotations

import torch
from torch import Tensor


def ulps(a: Tensor, b: Tensor) -> float:
    """The largest distance in units of the last place. Elements where terms cancel are measured in
    units of the mean magnitude instead: their own say nothing about the computation."""
    size = torch.maximum(b.abs(), b.abs().mean())
    unit = torch.nextafter(size, torch.tensor(torch.inf)) - size
    return float(((a - b).abs() / unit).max())
