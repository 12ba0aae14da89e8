"""Attention and rotary embedding as functions.

The mathematics: docs/ops/attention.md and docs/ops/rope.md. Legend: B batch, Hq query heads,
Hkv key/value heads, N queries, M keys, D query/key width, Dv value width.
"""

from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor

from fulgurite.nn.functional._batches import (
    check_are_tensors,
    check_batches,
    dims_as_given,
    four_dims,
    four_dims_of_scores,
    four_dims_of_slopes,
)
from fulgurite.nn.functional._scripting import philox_for, with_optional_lse

if TYPE_CHECKING:
    from fulgurite.nn.functional._types import AttentionFunction

__all__ = ["attention", "rope"]

# Optional[...] instead of `... | None`, and positional arguments: what TorchScript compiles.


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
) -> tuple[Tensor, Tensor]:
    r"""Fused scaled-dot-product attention; see docs/ops/attention.md.

    ``s_ij = scale·(q_i·k_j)`` over the pairs that are kept, ``p = exp(s − lse)``, ``out = Σ p v``.

    Args:
        query: (B,Hq,N,D), float64, float32, bfloat16 or float16. Also (Hq,N,D), and (B1,B2,Hq,N,D):
            then key and value have as many dimensions, and bias and mask may.
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
        alibi_slopes: (Hq), (B,Hq) or (B1,B2,Hq), float32: subtracts ``slope·|i' − j|``.
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
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        check_are_tensors(query, key, value, bias, mask, alibi_slopes)
    check_batches(query, key, value)
    out, lse = torch.ops.fulgurite.attention(
        four_dims(query),
        four_dims(key) if query.dim() != 4 else key,
        four_dims(value) if query.dim() != 4 else value,
        bias=four_dims_of_scores("bias", bias, query, key),
        mask=four_dims_of_scores("mask", mask, query, key),
        sink=sink,
        alibi_slopes=four_dims_of_slopes(alibi_slopes, query),
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
    return dims_as_given(out, query), dims_as_given(lse, query)


attention: "AttentionFunction" = with_optional_lse(_attention)


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
