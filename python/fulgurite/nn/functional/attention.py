"""Attention and rotary embedding as functions.

The mathematics: docs/ops/attention.md and docs/ops/rope.md. Legend: B batch, Hq query heads,
Hkv key/value heads, N queries, M keys, D query/key width, Dv value width.
"""

from typing import Literal, Optional, overload

import torch
from torch import Tensor

from fulgurite.nn.functional._scripting import dispatch_on_return_lse, philox_for

__all__ = ["attention", "rope"]

# Optional[...] instead of `... | None`, and positional arguments: what TorchScript compiles.


def _four_dims(x: Tensor) -> Tensor:
    """(H,N,D) becomes (1,H,N,D), (B1,B2,H,N,D) becomes (B1·B2,H,N,D)."""
    if x.dim() == 3:
        return x.unsqueeze(0)
    if x.dim() == 5:
        return x.flatten(0, 1)
    return x


def _four_dims_broadcast(x: Optional[Tensor], query: Tensor) -> Optional[Tensor]:
    """The same for a tensor that broadcasts to the scores."""
    if x is None or x.dim() != 5:
        return x
    if x.size(0) == 1 and x.size(1) == 1:
        return x.squeeze(0)
    return x.expand(query.size(0), query.size(1), -1, -1, -1).flatten(0, 1)


def _attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    sink: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    block_layout: Optional[Tensor] = None,
    block_size: int = 0,
    scale: Optional[float] = None,
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
    philox: Optional[Tensor] = None,
    return_lse: bool = True,
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.fulgurite.attention(
        _four_dims(query),
        _four_dims(key),
        _four_dims(value),
        bias=_four_dims_broadcast(bias, query),
        mask=_four_dims_broadcast(mask, query),
        sink=sink,
        alibi_slopes=alibi_slopes,
        block_layout=block_layout,
        block_size=block_size,
        scale=scale,
        causal=causal,
        align=align,
        window_left=window_left,
        window_right=window_right,
        sink_tokens=sink_tokens,
        chunk_size=chunk_size,
        softcap=softcap,
        score=score,
        score_scale=score_scale,
        dropout_p=dropout_p,
        philox=philox_for(dropout_p, philox, query),
    )
    if query.dim() == 3:
        return out.squeeze(0), lse.squeeze(0)
    if query.dim() == 5:
        return out.unflatten(0, [query.size(0), query.size(1)]), lse.unflatten(
            0, [query.size(0), query.size(1)]
        )
    return out, lse


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    sink: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    block_layout: Optional[Tensor] = None,
    block_size: int = 0,
    scale: Optional[float] = None,
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
    philox: Optional[Tensor] = None,
    return_lse: bool = False,
) -> Tensor:
    return _attention_with_lse(
        query,
        key,
        value,
        bias,
        mask,
        sink,
        alibi_slopes,
        block_layout,
        block_size,
        scale,
        causal,
        align,
        window_left,
        window_right,
        sink_tokens,
        chunk_size,
        softcap,
        score,
        score_scale,
        dropout_p,
        philox,
    )[0]


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor] = ...,
    mask: Optional[Tensor] = ...,
    sink: Optional[Tensor] = ...,
    alibi_slopes: Optional[Tensor] = ...,
    block_layout: Optional[Tensor] = ...,
    block_size: int = ...,
    scale: Optional[float] = ...,
    causal: bool = ...,
    align: str = ...,
    window_left: int = ...,
    window_right: int = ...,
    sink_tokens: int = ...,
    chunk_size: int = ...,
    softcap: float = ...,
    score: str = ...,
    score_scale: float = ...,
    dropout_p: float = ...,
    philox: Optional[Tensor] = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor] = ...,
    mask: Optional[Tensor] = ...,
    sink: Optional[Tensor] = ...,
    alibi_slopes: Optional[Tensor] = ...,
    block_layout: Optional[Tensor] = ...,
    block_size: int = ...,
    scale: Optional[float] = ...,
    causal: bool = ...,
    align: str = ...,
    window_left: int = ...,
    window_right: int = ...,
    sink_tokens: int = ...,
    chunk_size: int = ...,
    softcap: float = ...,
    score: str = ...,
    score_scale: float = ...,
    dropout_p: float = ...,
    philox: Optional[Tensor] = ...,
    *,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Optional[Tensor] = None,
    mask: Optional[Tensor] = None,
    sink: Optional[Tensor] = None,
    alibi_slopes: Optional[Tensor] = None,
    block_layout: Optional[Tensor] = None,
    block_size: int = 0,
    scale: Optional[float] = None,
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
    philox: Optional[Tensor] = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Fused scaled-dot-product attention; see docs/ops/attention.md.

    ``s_ij = scale·(q_i·k_j)`` over the pairs that are kept, ``p = exp(s − lse)``, ``out = Σ p v``.

    Args:
        query: (B,Hq,N,D), float64, float32, bfloat16 or float16. Also (Hq,N,D), and (B1,B2,Hq,N,D).
        key: (B,Hkv,M,D) in query's dtype; Hq is a multiple of Hkv and query head h uses head
            h // (Hq / Hkv).
        value: (B,Hkv,M,Dv) in query's dtype.
        mask: bool, broadcastable to (B,Hq,N,M); True keeps the pair.
        scale: factor of the products; None is 1/√D.
        causal: query i keeps keys j ≤ i', where i' = i + M − N with align "bottom_right" and i with
            "top_left".
        align: "bottom_right" or "top_left".
        window_left, window_right: keep i' − window_left ≤ j ≤ i' + window_right; −1 is no bound.
        bias: query's dtype or float32, broadcastable to (B,Hq,N,M), with a gradient at its own
            shape; −inf hides a pair.
        sink: (Hq), a learned extra logit in the denominator, with a gradient.
        alibi_slopes: (Hq) or (B,Hq), float32: subtracts slope·|i' − j|.
        block_layout: bool or uint8, (1 or Hq, ⌈N/block_size⌉, ⌈M/block_size⌉): keeps whole blocks
            of pairs.
        block_size: of block_layout.
        sink_tokens: the first keys stay in reach of every window.
        chunk_size: queries meet keys of their own chunk only; 0 is no chunks.
        softcap: s becomes softcap·tanh(s/softcap) before the bias; 0 is none.
        score: "softmax", or not normalised "relu2" and "laplace", which score_scale multiplies.
        score_scale: of relu2 and laplace.
        dropout_p: probability of dropping a pair's weight.
        philox: int64 [seed, offset] for dropout; drawn from torch's default generator if not given.
            [seed, offset, first batch index, first head]: of a part of the batch or of the heads
            what the whole would drop.
        return_lse: a literal in TorchScript; True returns (out, lse).

    Returns:
        out (B,Hq,N,Dv) in query's dtype, contiguous; with return_lse also lse (B,Hq,N), the natural
        logarithm of the row sums, in float32 (float64 for float64). A row that keeps nothing gives
        out 0 and lse −inf. Both have gradients.

    Raises:
        TypeError, ValueError, RuntimeError (shapes, devices), NotImplementedError: before anything
            is computed.

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> query, key = torch.randn(1, 8, 16, 64), torch.randn(1, 2, 16, 64)
        >>> out, lse = F.attention(query, key, key, causal=True, window_left=7, return_lse=True)
        >>> out.shape, lse.shape
        (torch.Size([1, 8, 16, 64]), torch.Size([1, 8, 16]))
    """
    run = _attention_with_lse if return_lse else _attention
    return run(
        query,
        key,
        value,
        bias,
        mask,
        sink,
        alibi_slopes,
        block_layout,
        block_size,
        scale,
        causal,
        align,
        window_left,
        window_right,
        sink_tokens,
        chunk_size,
        softcap,
        score,
        score_scale,
        dropout_p,
        philox,
    )


dispatch_on_return_lse(attention, _attention_with_lse, _attention, 21)


def rope(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, conjugate: bool = False
) -> Tensor:
    r"""Rotary position embedding; see docs/ops/rope.md.

    ``a' = a·cos − b·sin``, ``b' = b·cos + a·sin`` for each pair (a, b) of a row.

    Args:
        x: (…,N,D), float64, float32, bfloat16 or float16.
        cos, sin: broadcastable to (…,N,R/2), R ≤ D, in x's dtype or float32. Elements of x from R
            on pass through.
        interleaved: pairs are (x_{2i}, x_{2i+1}) instead of (x_i, x_{i+R/2}).
        conjugate: rotate back.

    Returns:
        x's shape and dtype, contiguous. The gradient reaches x; cos and sin must not require one.

    Raises:
        TypeError, RuntimeError (shapes, devices), NotImplementedError (cos or sin require a
            gradient).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> angle = torch.arange(16.0)[:, None] * 10000 ** -(torch.arange(32.0) / 32)
        >>> x = torch.randn(1, 8, 16, 64)
        >>> y = F.rope(x, angle.cos(), angle.sin())
        >>> torch.allclose(F.rope(y, angle.cos(), angle.sin(), conjugate=True), x, atol=1e-5)
        True
    """
    turned: Tensor = torch.ops.fulgurite.rope(
        x, cos, sin, interleaved=interleaved, conjugate=conjugate
    )
    return turned
