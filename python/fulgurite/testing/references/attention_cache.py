"""References of attention over packed sequences, over caches, and of merging partial results.

T rows of all sequences, Hq query heads, Hkv key/value heads, N queries, D query/key width, Dv value
width. Each sequence goes through the dense reference on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fulgurite.testing.references.attention import attention, attention_naive, expand_pairs

Attention = Callable[..., tuple[Tensor, Tensor]]


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    alibi_slopes: Tensor | None = None,
    philox: Tensor | None = None,
    dense: Attention = attention,
    **scores: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of shapes (T, Hq, Dv) and (Hq, T) for query (T, Hq, D) and key (·, Hkv, D).

    Rows past the last offset belong to no sequence: out 0, lse −inf.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    outs, lses = [], []
    starts = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    ends = zip(cu_seqlens_q[1:].tolist(), cu_seqlens_k[1:].tolist(), strict=True)
    for s, ((i0, j0), (i1, j1)) in enumerate(zip(starts, ends, strict=False)):
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[s]
        own = scores
        if philox is not None:  # its keep bits are those of batch entry s
            start = torch.tensor([0, 0, s, 0], device=philox.device)
            own = scores | {"philox": F.pad(philox, (0, 4 - len(philox))) + start}
        rows = (x.transpose(0, 1)[None] for x in (query[i0:i1], key[j0:j1], value[j0:j1]))
        out, lse = dense(*rows, alibi_slopes=slopes, **own)
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0].to(wide))
    rest = query[int(cu_seqlens_q[-1]) :]
    outs.append(0 * rest[..., :1].expand(-1, -1, value.shape[2]))
    lses.append(torch.full((query.shape[1], len(rest)), -math.inf, dtype=wide, device=query.device))
    return torch.cat(outs), torch.cat(lses, dim=1)


def attention_varlen_naive(*args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The same as plain PyTorch computes it in the dtype of query."""
    return attention_varlen(*args, **kwargs, dense=attention_naive)


def attention_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_lens: Tensor,
    *,
    page_table: Tensor | None = None,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    causal: bool = True,
    dense: Attention = attention,
    **scores: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of query (B, Hq, N, D) over the first cache_lens[b] keys of each cache."""
    outs, lses = [], []
    for b, length in enumerate(cache_lens.tolist()):
        key, value = (
            sequence_of(cache, b, length, page_table) for cache in (key_cache, value_cache)
        )
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[b]
        kept = None
        if mask is not None:
            width = key_cache.shape[2] * (1 if page_table is None else page_table.shape[1])
            whole = expand_pairs(mask, (*query.shape[:3], width))
            kept = whole[b : b + 1, :, :, :length]
        out, lse = dense(
            query[b : b + 1], key, value, mask=kept, alibi_slopes=slopes, causal=causal, **scores
        )
        outs.append(out)
        lses.append(lse)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if not outs:
        shape = (*query.shape[:3], value_cache.shape[3])
        return query.new_zeros(shape), query.new_zeros(shape[:3], dtype=wide)
    return torch.cat(outs), torch.cat(lses).to(wide)


def attention_decode_naive(*args: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The same as plain PyTorch computes it in the dtype of query."""
    return attention_decode(*args, **kwargs, dense=attention_naive)


def sequence_of(cache: Tensor, b: int, length: int, page_table: Tensor | None) -> Tensor:
    """The first ``length`` keys of sequence b, (1, Hkv, length, ·)."""
    if page_table is None:
        return cache[b : b + 1, :, :length]
    page = cache.shape[2]
    used = page_table[b, : -(-length // page)].long()
    return cache[used].transpose(0, 1).flatten(1, 2)[None, :, :length]


def attention_merge(outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
    """out = Σ_r w_r·out_r with w the softmax of the lses, lse = log Σ_r exp lse_r.

    A partial of lse −inf contributes nothing; those of +inf outweigh all others and count alike.
    The lses are centred first: a large one has no digits left for the logarithm of the sum.
    """
    logits = torch.stack(lses)
    kept = logits != -math.inf
    centre = logits.detach().amax(0)
    centre = torch.where(centre == -math.inf, 0.0, centre)
    centred = torch.where(kept, logits - centre, -math.inf)
    centred = torch.where(logits == math.inf, 0.0, centred)
    lse = torch.logsumexp(centred, dim=0)
    weights = torch.where(kept, torch.exp(torch.where(kept, centred - lse, 0.0)), 0.0)
    partials = torch.where(kept[..., None], torch.stack(outs), 0.0)
    return (weights.to(partials.dtype)[..., None] * partials).sum(0), lse + centre
