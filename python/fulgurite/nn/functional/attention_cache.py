"""Attention over packed sequences and over caches, and the merging of partial results.

The mathematics: docs/ops/attention_varlen.md, attention_decode.md and attention_merge.md. Legend: T
rows of all sequences, Hq query heads, Hkv key/value heads, N queries, D query/key width, Dv value
width.
"""

from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor

from fulgurite.nn.functional._scripting import philox_for, with_optional_lse

if TYPE_CHECKING:
    from fulgurite.nn.functional._types import VarlenFunction

__all__ = ["attention_decode", "attention_merge", "attention_varlen"]


def _attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    sink: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    scale: Optional[float] = None,
    causal: bool = False,
    align: str = "bottom_right",
    window_left: int = -1,
    window_right: int = -1,
    sink_tokens: int = 0,
    softcap: float = 0.0,
    dropout_p: float = 0.0,
    philox: Optional[Tensor] = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Attention inside each of several packed sequences; see docs/ops/attention_varlen.md.

    Sequence s has the queries ``cu_seqlens_q[s]:cu_seqlens_q[s+1]`` and the keys
    ``cu_seqlens_k[s]:cu_seqlens_k[s+1]``; positions i and j count from its start.

    Args:
        query: (Tq,Hq,D), float64, float32, bfloat16 or float16.
        key: (Tk,Hkv,D) in query's dtype; query head h uses head h // (Hq / Hkv).
        value: (Tk,Hkv,Dv) in query's dtype.
        cu_seqlens_q, cu_seqlens_k: int32 or int64, (sequences + 1), rising from 0 to at most Tq and
            Tk; sequences may be empty. Rows past the last offset give out 0 and lse −inf.
        alibi_slopes: (Hq) or (sequences,Hq), float32 (float64 for float64).
        sink, scale, causal, align, window_left, window_right: as in :func:`attention`.
        sink_tokens, softcap, dropout_p, philox: as there.
        return_lse: a literal in TorchScript; True returns (out, lse).

    Returns:
        out (Tq,Hq,Dv) in query's dtype; with return_lse also lse (Hq,Tq) in float32 (float64 for
        float64). Both have gradients.

    Raises:
        TypeError, ValueError, RuntimeError (shapes, devices, offsets), NotImplementedError: before
            anything is computed.

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> x = torch.randn(10, 4, 16)
        >>> starts = torch.tensor([0, 3, 3, 10])  # three documents, one of them empty
        >>> F.attention_varlen(x, x, x, starts, starts, causal=True).shape
        torch.Size([10, 4, 16])
    """
    out, lse = torch.ops.fulgurite.attention_varlen(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        sink=sink,
        alibi_slopes=alibi_slopes,
        scale=scale,
        causal=causal,
        align=align,
        window_left=window_left,
        window_right=window_right,
        sink_tokens=sink_tokens,
        softcap=softcap,
        dropout_p=dropout_p,
        philox=philox_for(dropout_p, philox, query),
    )
    return out, lse


attention_varlen: "VarlenFunction" = with_optional_lse(_attention_varlen)


def attention_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_lens: Tensor,
    page_table: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    sink: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    scale: Optional[float] = None,
    causal: bool = True,
    window_left: int = -1,
    sink_tokens: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Few new queries against a cache of keys and values; see docs/ops/attention_decode.md.

    Query i of sequence b stands at position ``i + cache_lens[b] − N``: the keys of the N new tokens
    are in the cache already. There is no gradient.

    Args:
        query: (B,Hq,N,D), float64, float32, bfloat16 or float16.
        key_cache: (B,Hkv,Mmax,D) in query's dtype, or (P,Hkv,page,D) with a page table.
        value_cache: (B,Hkv,Mmax,Dv), or (P,Hkv,page,Dv).
        cache_lens: (B), int32 or int64: keys of each sequence.
        page_table: (B,pages), int32: the page that holds keys page·p … page·p + page − 1. Entries
            past the length are not read. Mmax is pages·page.
        mask: bool, broadcastable to (B,Hq,N,Mmax); True keeps. Trees of candidates use it with
            ``causal=False``.
        sink, alibi_slopes, scale, causal, window_left, sink_tokens, softcap: as in
            :func:`attention`.

    Returns:
        (out, lse): (B,Hq,N,Dv) in query's dtype and (B,Hq,N) in float32 (float64 for float64).

    Raises:
        TypeError, ValueError, RuntimeError (shapes, devices, lengths, pages): before anything is
            computed.

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> cache = torch.randn(2, 2, 64, 16)
        >>> out, lse = F.attention_decode(
        ...     torch.randn(2, 8, 1, 16), cache, cache, torch.tensor([64, 10])
        ... )
        >>> out.shape, lse.shape
        (torch.Size([2, 8, 1, 16]), torch.Size([2, 8, 1]))
    """
    out, lse = torch.ops.fulgurite.attention_decode(
        query,
        key_cache,
        value_cache,
        cache_lens,
        page_table=page_table,
        mask=mask,
        sink=sink,
        alibi_slopes=alibi_slopes,
        scale=scale,
        causal=causal,
        window_left=window_left,
        sink_tokens=sink_tokens,
        softcap=softcap,
    )
    return out, lse


def attention_merge(outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Partial results over different keys as one; see docs/ops/attention_merge.md.

    ``lse = log Σ_r exp lse_r``, ``out = Σ_r exp(lse_r − lse)·out_r``.

    Args:
        outs: at least one (…,N,D), of one shape and dtype.
        lses: as many (…,N), float32 (float64 for float64). A partial with −inf contributes nothing.

    Returns:
        (out, lse) of the shapes and dtypes of the partials, with gradients to all of them.

    Raises:
        TypeError, RuntimeError (shapes, devices, lists): before anything is computed.

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 10, 8)
        >>> halves = [F.attention(q, x, x, return_lse=True) for x in k.split(5, dim=2)]
        >>> out, lse = F.attention_merge([o for o, _ in halves], [l for _, l in halves])
        >>> torch.allclose(out, F.attention(q, k, k), atol=1e-6)
        True
    """
    out, lse = torch.ops.fulgurite.attention_merge(outs, lses)
    return out, lse
