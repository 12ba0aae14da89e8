"""References of the amp family: one gradient, one number at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def grad_stats(
    grads: list[Tensor], *, inv_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(found_inf, norm_sq, first_bad) of a list."""
    inv = 1.0 if inv_scale is None else inv_scale.item()
    bad = [i for i, grad in enumerate(grads) if not torch.isfinite(grad).all()]
    norm_sq = sum(((grad.double() * inv) ** 2).sum() for grad in grads)
    return (
        torch.tensor(float(bool(bad))),
        torch.as_tensor(norm_sq, dtype=torch.float64),
        torch.tensor(bad[0] if bad else -1),
    )


def clip_multiplier(
    norm_sq: Tensor, max_norm: float, *, inv_scale: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """inv_scale·min(1, max_norm/(√norm_sq + eps))"""
    inv = 1.0 if inv_scale is None else inv_scale.item()
    return torch.clamp(max_norm / (norm_sq.double().sqrt() + eps), max=1.0) * inv


def unscale_(grads: list[Tensor], found_inf: Tensor, inv_scale: Tensor) -> list[Tensor]:
    """The new gradients, then the new found_inf."""
    bad = any(not torch.isfinite(grad).all() for grad in grads)
    new = [(grad * inv_scale.item()).to(grad.dtype) for grad in grads]
    return [*new, torch.ones_like(found_inf) if bad else found_inf.clone()]


def update_scale_(
    scale: Tensor,
    growth_tracker: Tensor,
    hysteresis: Tensor,
    counters: Tensor,
    found_inf: Tensor,
    *,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
    max_hysteresis: int = 1,
    refill: str = "clean",
    min_scale: float = 0.0,
    max_scale: float | None = None,
) -> list[Tensor]:
    """The new scale, growth tracker, hysteresis and counters."""
    value, tracker, tolerance = scale.item(), int(growth_tracker), int(hysteresis)
    clean, skipped, in_a_row, last = counters.tolist()
    if found_inf.item() != 0:
        tracker = 0
        tolerance -= 1
        if tolerance <= 0:
            value = max(float32(value * backoff_factor), float32(min_scale))
        skipped, in_a_row, last = skipped + 1, in_a_row + 1, clean + skipped + 1
    else:
        tracker += 1
        grows = tracker == growth_interval
        if grows:
            tracker = 0
            larger = value * growth_factor
            larger = float32(larger if max_scale is None else min(larger, max_scale))
            value = larger if math.isfinite(larger) else value
        if grows or refill == "clean":
            tolerance = max_hysteresis
        clean, in_a_row = clean + 1, 0
    return [
        torch.full_like(scale, value),
        torch.full_like(growth_tracker, tracker),
        torch.full_like(hysteresis, tolerance),
        torch.tensor([clean, skipped, in_a_row, last], dtype=torch.int64),
    ]


def float32(value: float) -> float:
    """The nearest float32."""
    return torch.tensor(value, dtype=torch.float64).float().item()
