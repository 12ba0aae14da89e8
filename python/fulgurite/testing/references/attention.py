"""References of the attention family: every query meets every key, one pair at a time.

B batch, Hq query heads, Hkv key/value heads, N queries, M keys, D query/key width, Dv value width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Above this many products q_i·k_j·d the pairs are multiplied as matrices, which is the same for
# finite numbers; below it each pair stands alone, so that a hidden NaN cannot reach another pair.
PAIRWISE_LIMIT = 1 << 18


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sink: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_layout: Tensor | None = None,
    block_size: int = 0,
    scale: float | None = None,
    causal: bool = False,
    align: str = "bottom_right",
    window_left: int = -1,
    window_right: int = -1,
    sink_tokens: int = 0,
    chunk_size: int = 0,
    softcap: float = 0.0,
    score: str = "softmax",
    score_scale: float = 1.0,
    dropout_p: float = 0.0,
    philox: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of shapes (B, Hq, N, Dv) and (B, Hq, N), as docs/ops/attention.md defines them.

    The formula, over the pairs that are kept::

        s_ij = scale·(q_i·k_j), softcapped, + bias_ij − alibi·|i' − j|
        p_ij = exp(s_ij − lse_i),  lse_i = log(Σ_j exp s_ij + exp(sink)),  out_i = Σ_j z_ij p_ij v_j

    z_ij is 1, or with dropout 0 where the pair is dropped and 1/(1 − dropout_p) elsewhere.
    """
    B, Hq, N, D = query.shape
    Hkv, M = key.shape[1], key.shape[2]
    shape = (B, Hq, N, M)
    key = key.repeat_interleave(Hq // Hkv, dim=1) if Hkv else key
    value = value.repeat_interleave(Hq // Hkv, dim=1) if Hkv else value

    kept = kept_pairs(
        N, M, causal=causal, align=align, window_left=window_left, window_right=window_right,
        sink_tokens=sink_tokens, chunk_size=chunk_size, device=query.device,
    ).expand(shape)  # fmt: skip
    if mask is not None:
        kept = kept & expand_pairs(mask, shape)
    if block_layout is not None:
        kept = kept & expand_blocks(block_layout, block_size, N, M)
    if bias is not None:
        bias = expand_pairs(bias, shape)
        kept = kept & (bias != -math.inf)

    scores = (D**-0.5 if scale is None else scale) * pair_products(query, key, kept)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + torch.where(kept, bias, 0.0)
    if alibi_slopes is not None:
        i = query_positions(N, M, align, query.device)[:, None]
        distance = (i - torch.arange(M, device=query.device)).abs()
        scores = scores - alibi_slopes.reshape(-1, Hq, 1, 1) * distance

    if score == "softmax":
        weights, lse = softmax(scores, kept, sink)
    else:
        weights = torch.where(kept, score_scale * activation(scores, score), 0.0)
        lse = scores.new_zeros(B, Hq, N)
    if philox is not None and dropout_p > 0:
        weights = weights * dropout_keep(shape, dropout_p, philox) / (1 - dropout_p)
    return weighted_values(weights, value, kept), lse


def attention_naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    sink: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_layout: Tensor | None = None,
    block_size: int = 0,
    scale: float | None = None,
    causal: bool = False,
    align: str = "bottom_right",
    window_left: int = -1,
    window_right: int = -1,
    sink_tokens: int = 0,
    chunk_size: int = 0,
    softcap: float = 0.0,
    score: str = "softmax",
    score_scale: float = 1.0,
    dropout_p: float = 0.0,
    philox: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) as plain PyTorch computes them in the dtype of query: the yardstick of errors."""
    B, Hq, N, D = query.shape
    Hkv, M = key.shape[1], key.shape[2]
    shape, dtype = (B, Hq, N, M), query.dtype
    key, value = (x.repeat_interleave(Hq // Hkv, dim=1) for x in (key, value))
    kept = kept_pairs(
        N, M, causal=causal, align=align, window_left=window_left, window_right=window_right,
        sink_tokens=sink_tokens, chunk_size=chunk_size, device=query.device,
    )  # fmt: skip
    if mask is not None:
        kept = kept & expand_pairs(mask, shape)
    if block_layout is not None:
        kept = kept & expand_blocks(block_layout, block_size, N, M)
    scores = query @ key.mT * (D**-0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + expand_pairs(bias, shape).to(dtype)
    if alibi_slopes is not None:
        i = query_positions(N, M, align, query.device)[:, None]
        distance = (i - torch.arange(M, device=query.device)).abs()
        scores = scores - (alibi_slopes.reshape(-1, Hq, 1, 1) * distance).to(dtype)
    scores = scores.masked_fill(~kept, -math.inf)
    if score != "softmax":
        weights = (score_scale * activation(scores, score)).masked_fill(~kept, 0.0)
        return weights @ value, scores.new_zeros(B, Hq, N)
    logits = scores
    if sink is not None:
        column = sink.to(dtype).reshape(1, -1, 1, 1).expand(B, Hq, N, 1)
        logits = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., :M].masked_fill(~kept, 0.0)
    if philox is not None and dropout_p > 0:
        keep = dropout_keep(shape, dropout_p, philox)
        weights = weights * keep / (1 - dropout_p)
    return weights @ value, torch.logsumexp(logits, dim=-1)


def query_positions(N: int, M: int, align: str, device: torch.device) -> Tensor:
    """i' = i + (M − N if the last query meets the last key, else 0)."""
    return torch.arange(N, device=device) + (M - N if align == "bottom_right" else 0)


def kept_pairs(
    N: int,
    M: int,
    *,
    causal: bool,
    align: str,
    window_left: int,
    window_right: int,
    sink_tokens: int,
    chunk_size: int,
    device: torch.device,
) -> Tensor:
    """Which of the (N, M) pairs the positions alone keep."""
    i = query_positions(N, M, align, device)[:, None]
    j = torch.arange(M, device=device)[None, :]
    kept = (j <= i) if causal else torch.ones(N, M, dtype=torch.bool, device=device)
    left = (i - window_left <= j) if window_left >= 0 else torch.ones_like(kept)
    right = (j <= i + window_right) if window_right >= 0 else torch.ones_like(kept)
    kept = kept & ((left & right) | (j < sink_tokens))
    if chunk_size > 0:
        kept = kept & (i // chunk_size == j // chunk_size)  # rounds down: i' can be negative
    return kept


def expand_pairs(pairs: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A mask or bias at (B, Hq, N, M); a batch B' that divides B repeats: index b mod B'."""
    pairs = pairs.reshape((1,) * (4 - pairs.dim()) + tuple(pairs.shape))
    if pairs.shape[0] not in (1, shape[0]):
        pairs = pairs.repeat(shape[0] // pairs.shape[0], 1, 1, 1)
    return pairs.expand(shape)


def expand_blocks(block_layout: Tensor, block_size: int, N: int, M: int) -> Tensor:
    """A layout of blocks (1 or Hq, ⌈N/bs⌉, ⌈M/bs⌉) as pairs (1 or Hq, N, M)."""
    rows = block_layout.bool().repeat_interleave(block_size, dim=1)[:, :N]
    return rows.repeat_interleave(block_size, dim=2)[:, :, :M]


def dropout_keep(shape: tuple[int, int, int, int], p: float, philox: Tensor) -> Tensor:
    """Which pairs (B, Hq, N, M) dropout keeps: the word of a pair is at least p·2³².

    Four keys j share a counter (j // 4, i, b, h) of Philox4x32-10; key j has word j mod 4 of it. b
    and h count from the first batch index and the first head that philox may name. Seed and
    offset make the key: the first two words of counter (offset's halves, 0, 0) under the seed.
    """
    seed, offset, first_batch, first_head = (int(word) % 2**64 for word in [*philox, 0, 0][:4])
    halves = [np.array(word, np.uint64) for word in (offset % 2**32, offset >> 32, 0, 0)]
    low, high, *_ = philox4x32(halves, seed % 2**32, seed >> 32)
    b, h, i, j = np.ogrid[tuple(slice(size) for size in shape)]
    counter = [x.astype(np.uint64) for x in (j // 4, i, first_batch + b, first_head + h)]
    words = philox4x32(counter, int(low), int(high))
    word = np.choose(j % 4, np.broadcast_arrays(*words))
    keep = np.broadcast_to(word >= np.uint64(min(int(p * 2**32), 2**32 - 1)), shape)
    return torch.from_numpy(keep.copy()).to(philox.device)


def philox4x32(counter: list[Any], low: int, high: int) -> list[Any]:
    """Ten rounds of Philox on four 32-bit words held in uint64 arrays (Salmon et al. 2011)."""
    half = np.uint64(32)
    mask = np.uint64(2**32 - 1)
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(low), p1 & mask
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(high), p0 & mask
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def pair_products(query: Tensor, key: Tensor, kept: Tensor) -> Tensor:
    """q_i·k_j of the kept pairs, 0 elsewhere: (B, Hq, N, M)."""
    if kept.numel() * query.shape[-1] > PAIRWISE_LIMIT:
        return torch.where(kept, query @ key.mT, 0.0)
    q = torch.where(kept[..., None], query[:, :, :, None, :], 0.0)  # (B, Hq, N, M, D)
    k = torch.where(kept[..., None], key[:, :, None, :, :], 0.0)  # (B, Hq, N, M, D)
    return (q * k).sum(-1)


def weighted_values(weights: Tensor, value: Tensor, kept: Tensor) -> Tensor:
    """Σ_j w_ij v_j over the kept pairs: (B, Hq, N, Dv)."""
    if kept.numel() * value.shape[-1] > PAIRWISE_LIMIT:
        return weights @ value
    v = torch.where(kept[..., None], value[:, :, None, :, :], 0.0)  # (B, Hq, N, M, Dv)
    return (weights[..., None] * v).sum(-2)


def softmax(scores: Tensor, kept: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and lse over the kept pairs; a row that keeps nothing has weights 0 and lse −inf.

    Each ``where`` also stands between hidden pairs and the gradient: its backward is 0 there. The
    scores are centred first: an lse of −1e38 has no digits left for the logarithm of the sum.
    """
    logits = torch.where(kept, scores, -math.inf)
    if sink is not None:
        column = sink.reshape(1, -1, 1, 1).expand(*kept.shape[:3], 1)
        logits = torch.cat([logits, column], dim=-1)
    centre = torch.logsumexp(logits.detach(), dim=-1, keepdim=True)
    centre = torch.where(centre.isfinite(), centre, 0.0)
    lse = torch.logsumexp(logits - centre, dim=-1, keepdim=True)
    exponents = torch.where(kept, (scores - centre) - lse, 0.0)
    return torch.where(kept, torch.exp(exponents), 0.0), (lse + centre)[..., 0]


def activation(scores: Tensor, score: str) -> Tensor:
    """The scores that are not normalised: relu(s)², or Laplace's ½(1 + erf((s − √.5)·√(2π)))."""
    if score == "relu2":
        return torch.relu(scores) ** 2
    if score == "laplace":
        return 0.5 * (1 + torch.erf((scores - math.sqrt(0.5)) * math.sqrt(2 * math.pi)))
    raise ValueError(f"score {score!r} is not softmax, relu2 or laplace")


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """x (…, N, D) with its first R dims rotated by the angles of cos and sin (…, N, R/2).

    Halves layout: dim d turns with dim d + R/2; interleaved: dim 2d with dim 2d + 1::

        (a, b) → (a·cos − b·sin, b·cos + a·sin)      conjugate: sin negated
    """
    half = cos.shape[-1]
    if conjugate:
        sin = -sin
    rotated, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
    else:
        a, b = rotated[..., :half], rotated[..., half:]
    turned = (a * cos - b * sin, b * cos + a * sin)
    joined = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat([joined, rest], dim=-1)


def rope_naive(x: Tensor, cos: Tensor, sin: Tensor, **kwargs: bool) -> Tensor:
    """The same in the dtype of x alone, as models write it."""
    return rope(x, cos.to(x.dtype), sin.to(x.dtype), **kwargs)
