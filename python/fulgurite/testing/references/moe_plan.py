"""References of the plan and of what moves rows by it, in plain Python and torch operations.

T tokens, E experts, K experts per token, H width of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def service_order(experts: list[list[int | None]], drop: str, weights: Tensor | None) -> list[int]:
    """The assignments t·K + j in the order in which experts take them; None has no expert."""
    K = len(experts[0]) if experts else 0
    given = weights.double().tolist() if weights is not None else []

    def falling(weight: float) -> float:
        return math.inf if math.isnan(weight) else -weight

    def best(t: int) -> tuple[bool, float]:
        """Whether all weights of a token are NaN, and the largest, falling."""
        real = [w for w, e in zip(given[t], experts[t], strict=True) if e is not None]
        numbers = [w for w in real if not math.isnan(w)]
        return not numbers, -max(numbers, default=0.0)

    def key(a: int) -> tuple[bool, float]:
        t, j = divmod(a, K)
        if drop == "token":
            return False, 0.0
        if drop == "choice":
            return False, float(j)
        if drop == "weight":
            return math.isnan(given[t][j]), falling(given[t][j])
        return best(t)

    return sorted(range(len(experts) * K), key=key)  # stable: the earlier among equals


def moe_plan(
    ids: Tensor,
    num_experts: int,
    *,
    capacity: int = -1,
    drop: str = "token",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(permutation, inverse, offsets): experts take what they have room for, then Python sorts."""
    E = num_experts
    experts = [[e if 0 <= e < E else None for e in row] for row in ids.tolist()]
    flat = [e for row in experts for e in row]
    room = [len(flat) if capacity < 0 else capacity] * E
    taken = [E] * len(flat)  # E: sentinel or dropped
    for a in service_order(experts, drop, weights):
        e = flat[a]
        if e is not None and room[e] > 0:
            room[e] -= 1
            taken[a] = e
    order = sorted(range(len(flat)), key=lambda a: taken[a])
    inverse = [-1] * len(flat)
    for position, a in enumerate(order):
        if taken[a] < E:
            inverse[a] = position
    offsets = [sum(e < limit for e in taken) for limit in range(E + 1)]

    def tensor(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=ids.device)

    return (
        tensor(order, torch.int32),
        tensor(inverse, torch.int32).reshape(ids.shape),
        tensor(offsets, torch.int64),
    )


def moe_permute(x: Tensor, permutation: Tensor, inverse: Tensor) -> Tensor:
    """Row p is x[permutation[p] // K], 0 where the assignment has no expert."""
    assignment = permutation.long()
    tokens = assignment // max(inverse.shape[1], 1)
    kept = inverse.flatten()[assignment] >= 0
    return torch.where(kept[:, None], x[tokens], 0.0)


def moe_combine(y: Tensor, inverse: Tensor, weights: Tensor | None = None) -> Tensor:
    """out_t = Σ_j w_tj · y[inverse[t, j]]."""
    T, K = inverse.shape
    out = y.new_zeros(T, y.shape[1])
    for j in range(K):
        row = inverse[:, j].long()
        term = torch.where((row >= 0)[:, None], y[row.clamp(min=0)] if y.shape[0] else out, 0.0)
        if weights is not None:
            w = torch.where(row >= 0, weights[:, j], 0.0)
            term = w[:, None].to(y.dtype) * term
        out = out + term
    return out
