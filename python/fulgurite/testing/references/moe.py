"""References of the moe family: one token after the other where that is the definition.

T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from __future__ import annotations

import math
from functools import cmp_to_key

import torch
import torch.nn.functional as F
from torch import Tensor


def is_softmax(score: str) -> bool:
    return score in ("softmax", "softmax_topk")


def expert_scores(logits: Tensor, score: str) -> Tensor:
    """What the choice goes by, before the bias: logits, σ(logits) or √softplus(logits)."""
    if is_softmax(score):
        return logits
    if score == "sigmoid":
        return torch.sigmoid(logits)
    # As √(log(1 + e^x)), but with gradients that are 0 and not NaN where e^x is 0 or infinite.
    tail = logits < -40.0
    low, high = torch.where(tail, logits, 0.0), torch.where(tail, 0.0, logits)
    return torch.where(tail, torch.exp(low / 2), torch.sqrt(F.softplus(high)))


def ranking(scores: list[float]) -> list[int]:
    """Indices by falling score: NaN last, the lowest index first among equals."""

    def compare(a: int, b: int) -> int:
        x, y = scores[a], scores[b]
        if math.isnan(x) or math.isnan(y):
            if math.isnan(x) and math.isnan(y):
                return a - b
            return 1 if math.isnan(x) else -1
        return a - b if x == y else (-1 if x > y else 1)

    return sorted(range(len(scores)), key=cmp_to_key(compare))


def choose(
    scores: list[float], k: int, n_group: int, topk_group: int, group_score: str
) -> list[int]:
    """The k experts of one token, from the best ``topk_group`` groups only."""
    size = len(scores) // n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(n_group)]
    group_scores = []
    for members in groups:
        best = [scores[members[i]] for i in ranking([scores[e] for e in members])]
        group_scores.append(best[0] + best[1] if group_score == "top2" and size > 1 else best[0])
    kept = set(ranking(group_scores)[:topk_group])
    allowed = [e for g, members in enumerate(groups) if g in kept for e in members]
    return [allowed[i] for i in ranking([scores[e] for e in allowed])[:k]]


def moe_route(
    logits: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    score: str = "softmax",
    n_group: int = 1,
    topk_group: int = 1,
    group_score: str = "top2",
    renormalize: bool = True,
    eps: float = 1e-20,
    scale: float = 1.0,
    token_mask: Tensor | None = None,
    forced_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, ids, counts), shapes (T, K), (T, K) and (E); docs/ops/moe_route.md defines them."""
    T, E = logits.shape
    # 16-bit logits are routed in float32; this function also runs in their dtype, as a yardstick.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    with torch.no_grad():
        scores = expert_scores(wide, score)
        choice = scores if bias is None else scores + bias.to(scores.dtype)
    if forced_ids is not None:
        ids = forced_ids.to(torch.int64)
    else:
        rows = [choose(row, k, n_group, topk_group, group_score) for row in choice.tolist()]
        ids = torch.tensor(rows, dtype=torch.int64, device=logits.device).reshape(T, k)
    if token_mask is not None:
        ids = torch.where(token_mask[:, None], ids, E)

    real = (ids >= 0) & (ids < E)
    safe = torch.where(real, ids, 0)
    over_all = score == "softmax" and not renormalize
    used = torch.zeros_like(wide).scatter_add(1, safe, real.to(wide.dtype)) > 0
    if over_all:
        used = used.any(1, keepdim=True)
    # What no weight depends on is left out: its gradient is 0, where autograd has 0 · NaN.
    wide = torch.where(used, wide, 0.0)
    if is_softmax(score):
        if over_all:
            weights = torch.softmax(wide, dim=1).gather(1, safe)
        else:
            weights = torch.softmax(torch.where(real, wide.gather(1, safe), -math.inf), dim=1)
    else:
        weights = torch.where(real, expert_scores(wide, score).gather(1, safe), 0.0)
        if renormalize:
            weights = weights / (weights.sum(1, keepdim=True) + eps)
    weights = torch.where(real, weights * scale, 0.0)
    counts = torch.bincount(ids[real], minlength=E)
    return weights, ids.to(torch.int32), counts


def normalised_scores(logits: Tensor, score: str, eps: float) -> Tensor:
    """P (T, E): the softmax over all experts, or s / (Σ s + eps)."""
    if is_softmax(score):
        return torch.softmax(logits, dim=1)
    scores = expert_scores(logits, score)
    return scores / (scores.sum(1, keepdim=True) + eps)


def moe_balance_loss(
    logits: Tensor,
    ids: Tensor,
    *,
    score: str = "softmax",
    kind: str = "switch",
    sequence_ids: Tensor | None = None,
    token_mask: Tensor | None = None,
    eps: float = 1e-20,
) -> Tensor:
    """The loss of ``kind`` over the tokens that the mask keeps, 0-dim."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if token_mask is not None:
        wide, ids = wide[token_mask], ids[token_mask]
        sequence_ids = None if sequence_ids is None else sequence_ids[token_mask]
    T, E = wide.shape
    zero = wide[:0].sum()
    if T == 0:
        return zero
    if kind == "sequence":
        assert sequence_ids is not None
        losses = [
            switch(wide[sequence_ids == s], ids[sequence_ids == s], score, eps)
            for s in set(sequence_ids.tolist())
        ]
        return torch.stack(losses).mean()
    scores = normalised_scores(wide, score, eps)
    if kind == "cv2":
        if E == 1:
            return zero
        importance = scores.sum(0)
        return importance.var(unbiased=True) / importance.mean() ** 2
    if kind == "switch":
        return switch(wide, ids, score, eps)
    share = load(ids[:, :1] if kind == "gshard" else ids, E) / T
    return E * (share.to(scores.dtype) * scores.mean(0)).sum()


def load(ids: Tensor, E: int) -> Tensor:
    """Assignments of each expert, sentinels left out."""
    return torch.bincount(ids[(ids >= 0) & (ids < E)].long(), minlength=E).double()


def switch(logits: Tensor, ids: Tensor, score: str, eps: float) -> Tensor:
    """E · Σ_e f_e P_e."""
    E = logits.shape[1]
    scores = normalised_scores(logits, score, eps)
    share = load(ids, E) / ids.numel()
    return E * (share.to(scores.dtype) * scores.mean(0)).sum()


def moe_z_loss(logits: Tensor, *, token_mask: Tensor | None = None) -> Tensor:
    """mean_t (log Σ_e exp l_te)²."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if token_mask is not None:
        wide = wide[token_mask]
    return torch.logsumexp(wide, dim=1).square().sum() / max(wide.shape[0], 1)


def moe_update_bias_(
    bias: Tensor, counts: Tensor, rate: float, *, rule: str = "sign", center: bool = False
) -> list[Tensor]:
    """The new bias."""
    if int(counts.sum()) == 0:
        return [bias.clone()]
    lack = counts.double().mean() - counts.double()
    if rule == "sign":
        # E·lack is an integer: compare that, where no rounding decides.
        update = rate * torch.sign(counts.sum() - counts.numel() * counts).double()
    else:
        update = rate * lack / counts.double().mean()
    if center:
        update = update - update.mean()
    return [(bias.double() + update).to(bias.dtype)]
