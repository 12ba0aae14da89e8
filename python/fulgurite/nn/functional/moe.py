"""Mixture of experts as functions. The mathematics: docs/ops/moe_*.md.

Legend: T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from typing import Optional

import torch
from torch import Tensor

__all__ = [
    "moe_balance_loss",
    "moe_combine",
    "moe_permute",
    "moe_plan",
    "moe_route",
    "moe_update_bias_",
    "moe_z_loss",
]

# Optional[...] instead of `... | None`, and no keyword-only arguments: what TorchScript compiles.


def moe_route(
    logits: Tensor,
    k: int,
    bias: Optional[Tensor] = None,
    score: str = "softmax",
    n_group: int = 1,
    topk_group: int = 1,
    group_score: str = "top2",
    renormalize: bool = True,
    eps: float = 1e-20,
    scale: float = 1.0,
    token_mask: Optional[Tensor] = None,
    forced_ids: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Choose K of E experts for every token, and weigh them; see docs/ops/moe_route.md.

    The choice is by the logits, or by ``score(logits) + bias``; ties go to the lowest index and NaN
    ranks below −inf.

    Args:
        logits: (T,E), float64, float32, bfloat16 or float16.
        k: experts per token, 1 ≤ k ≤ E.
        bias: (E), any of these dtypes: added for the choice only, without gradient. Not with a
            softmax score.
        score: "softmax" (over all experts), "softmax_topk" (over the chosen ones), "sigmoid" or
            "sqrtsoftplus".
        n_group, topk_group: experts are n_group equal groups in a row; only the best topk_group of
            them are chosen from.
        group_score: a group's score is the sum of its best two ("top2") or its best ("max").
        renormalize: the weights of a token sum to scale.
        eps: added to the sum that "sigmoid" and "sqrtsoftplus" are renormalised by.
        scale: factor of the weights.
        token_mask: (T) bool; False: no expert, ids E, weights 0, not counted.
        forced_ids: (T,K) int32 or int64: take these instead of choosing. An id outside [0, E) has
            weight 0 and is not counted.

    Returns:
        weights (T,K), float32 (float64 for float64), with gradient to logits; ids (T,K) int32, by
        falling choice score; counts (E) int64, tokens per expert.

    Raises:
        TypeError, RuntimeError (shapes, devices), ValueError (k, names, groups that do not hold k
        experts, bias with softmax).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
        >>> weights, ids, counts = F.moe_route(logits, 2)
        >>> ids.tolist(), counts.tolist()
        ([[1, 3], [0, 1]], [1, 2, 0, 1])
        >>> weights[0].tolist()
        [0.5, 0.5]
    """
    weights, ids, counts = torch.ops.fulgurite.moe_route(
        logits,
        k,
        bias=bias,
        score=score,
        n_group=n_group,
        topk_group=topk_group,
        group_score=group_score,
        renormalize=renormalize,
        eps=eps,
        scale=scale,
        token_mask=token_mask,
        forced_ids=forced_ids,
    )
    return weights, ids, counts


def moe_plan(
    ids: Tensor,
    num_experts: int,
    capacity: int = -1,
    drop: str = "token",
    weights: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sort the T·K assignments by expert, stably; see docs/ops/moe_plan.md.

    Args:
        ids: (T,K) int32 or int64. An id outside [0, num_experts) is a sentinel: no expert.
        num_experts: E.
        capacity: assignments that an expert keeps; −1: all.
        drop: who is served first where an expert has more: "token" (the earlier token), "choice"
            (first choices before second ones), "weight" (the larger weight) or "priority" (the
            token with the largest weight). The earlier token among equals, NaN last.
        weights: (T,K), float64, float32, bfloat16 or float16; needed by "weight" and "priority".

    Returns:
        permutation (T·K) int32: sorted position → t·K + j, sentinels and what was dropped last;
        inverse (T,K) int32: the way back, −1 for sentinels and what was dropped; offsets (E+1)
        int64: expert e has the sorted positions offsets[e] to offsets[e+1], in the order of the
        assignments whatever ``drop`` is.

    Raises:
        TypeError, RuntimeError (shapes, 2³¹ or more assignments), ValueError (num_experts,
        capacity, drop, no weights where they are needed).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> permutation, inverse, offsets = F.moe_plan(torch.tensor([[1, 0], [1, -1]]), 2)
        >>> permutation.tolist(), inverse.tolist(), offsets.tolist()
        ([1, 0, 2, 3], [[1, 0], [2, -1]], [0, 1, 3])
        >>> ids, weights = torch.tensor([[0], [0], [0]]), torch.tensor([[0.2], [0.9], [0.5]])
        >>> F.moe_plan(ids, 1, capacity=2, drop="weight", weights=weights)[1].flatten().tolist()
        [-1, 0, 1]
    """
    permutation, inverse, offsets = torch.ops.fulgurite.moe_plan(
        ids, num_experts, capacity=capacity, drop=drop, weights=weights
    )
    return permutation, inverse, offsets


def moe_permute(x: Tensor, permutation: Tensor, inverse: Tensor) -> Tensor:
    r"""A row for each expert of each token, sorted by expert; see docs/ops/moe_plan.md.

    Args:
        x: (T,H), float64, float32, bfloat16 or float16.
        permutation: (T·K) int32, of :func:`moe_plan`.
        inverse: (T,K) int32, of the same plan.

    Returns:
        (T·K,H) in x's dtype: row p is x[permutation[p] // K], 0 past offsets[E]. Has a gradient.

    Raises:
        TypeError, RuntimeError (shapes, devices, entries that are not a plan's).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> permutation, inverse, offsets = F.moe_plan(torch.tensor([[1, 0], [1, -1]]), 2)
        >>> F.moe_permute(torch.tensor([[5.0], [7.0]]), permutation, inverse).flatten().tolist()
        [5.0, 5.0, 7.0, 0.0]
    """
    permuted: Tensor = torch.ops.fulgurite.moe_permute(x, permutation, inverse)
    return permuted


def moe_combine(y: Tensor, inverse: Tensor, weights: Optional[Tensor] = None) -> Tensor:
    r"""Add up each token's rows; see docs/ops/moe_plan.md.

    ``out_t = Σ_j weights[t,j] · y[inverse[t,j]]``

    Args:
        y: (T·K,H), float64, float32, bfloat16 or float16, sorted by expert.
        inverse: (T,K) int32, of :func:`moe_plan`; −1 contributes nothing.
        weights: (T,K), float32, float64 or y's dtype; None is 1.

    Returns:
        (T,H) in y's dtype: added in float32 (float64 for float64) in the order of j and rounded
        once. Has gradients to y and weights.

    Raises:
        TypeError, RuntimeError (shapes, devices, entries that are not a plan's).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> permutation, inverse, offsets = F.moe_plan(torch.tensor([[1, 0], [1, -1]]), 2)
        >>> y = torch.tensor([[1.0], [10.0], [100.0], [0.0]])
        >>> F.moe_combine(y, inverse, torch.tensor([[0.5, 0.5], [1.0, 0.0]])).flatten().tolist()
        [5.5, 100.0]
    """
    combined: Tensor = torch.ops.fulgurite.moe_combine(y, inverse, weights)
    return combined


def moe_balance_loss(
    logits: Tensor,
    ids: Tensor,
    score: str = "softmax",
    kind: str = "switch",
    sequence_ids: Optional[Tensor] = None,
    token_mask: Optional[Tensor] = None,
    eps: float = 1e-20,
) -> Tensor:
    r"""Auxiliary loss that evens out the load of the experts; see docs/ops/moe_balance_loss.md.

    With f_e the share of the assignments that expert e got and P_e its mean score, "switch" is ``E
    · Σ_e f_e P_e``: 1 at balance.

    Args:
        logits: (T,E), float64, float32, bfloat16 or float16.
        ids: (T,K) int32 or int64, the chosen experts; sentinels are not counted.
        score: as in :func:`moe_route`. P is the softmax over all experts for the softmax kinds,
            else s / (Σ s + eps).
        kind: "switch"; "hf" (f summed over K: K at balance); "gshard" (f of the first choices);
            "sequence" ("switch" within each sequence, averaged); "cv2" (squared coefficient of
            variation of Σ_t P).
        sequence_ids: (T) int32 or int64 in [0, T), for "sequence" only.
        token_mask: (T) bool; False leaves a token out.

    Returns:
        0-dim, float32 (float64 for float64). The gradient reaches logits through the scores only.

    Raises:
        TypeError, RuntimeError (shapes, devices, sequence_ids), ValueError (names, sequence_ids
        without "sequence").

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> F.moe_balance_loss(torch.zeros(4, 2), torch.tensor([[0], [1], [0], [1]])).item()
        1.0
    """
    loss: Tensor = torch.ops.fulgurite.moe_balance_loss(
        logits,
        ids,
        score=score,
        kind=kind,
        sequence_ids=sequence_ids,
        token_mask=token_mask,
        eps=eps,
    )
    return loss


def moe_z_loss(logits: Tensor, token_mask: Optional[Tensor] = None) -> Tensor:
    r"""Router z-loss, which keeps logits small; see docs/ops/moe_balance_loss.md.

    ``mean_t (log Σ_e exp logits[t,e])²``

    Args:
        logits: (T,E), float64, float32, bfloat16 or float16.
        token_mask: (T) bool; False leaves a token out.

    Returns:
        0-dim, float32 (float64 for float64); 0 if no token is left.

    Raises:
        TypeError, RuntimeError (shapes, devices).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> round(F.moe_z_loss(torch.zeros(3, 4)).item(), 4)  # log(4)²
        1.9218
    """
    loss: Tensor = torch.ops.fulgurite.moe_z_loss(logits, token_mask=token_mask)
    return loss


def moe_update_bias_(
    bias: Tensor, counts: Tensor, rate: float, rule: str = "sign", center: bool = False
) -> Tensor:
    r"""Move the selection bias towards balance, in place; see docs/ops/moe_update_bias_.md.

    ``bias += rate · sign(mean(counts) − counts)``, or ``rate · (mean − counts) / mean`` with rule
    "proportional".

    Args:
        bias: (E), float64, float32, bfloat16 or float16; written.
        counts: (E) int64 or int32, tokens per expert since the last update. All 0 changes nothing.
        rate: size of the step.
        rule: "sign" or "proportional".
        center: subtract the mean of the updates.

    Returns:
        bias itself.

    Raises:
        TypeError, RuntimeError (shapes, devices), ValueError (rule).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> F.moe_update_bias_(torch.zeros(3), torch.tensor([1, 2, 3]), 0.5).tolist()
        [0.5, 0.0, -0.5]
    """
    torch.ops.fulgurite.moe_update_bias_(bias, counts, rate, rule=rule, center=center)
    return bias
