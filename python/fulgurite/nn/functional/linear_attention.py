"""Linear attention as a function. The mathematics: docs/ops/linear_attention.md.

Legend: B batch, H heads, Hk heads of query and key, N queries, M keys, D width of query and key,
Dv of value.
"""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["linear_attention"]

# Optional[...] instead of `... | None`, and no keyword-only arguments: what TorchScript compiles.


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Optional[Tensor] = None,
    bonus: Optional[Tensor] = None,
    scale: float = 1.0,
    causal: bool = True,
    normalize: bool = False,
    eps: float = 1e-6,
    exclusive_chunk: int = 0,
    initial_state: Optional[Tensor] = None,
    initial_norm: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Attention through a state of D by Dv numbers a head; see docs/ops/linear_attention.md.

    ``S_t = exp(g_t)·S_{t−1} + k_t v_tᵀ``, ``out_t = scale·q_tᵀ S_t``

    Args:
        query: (B,Hk,N,D), float64, float32, bfloat16 or float16, any strides.
        key: (B,Hk,N,D), query's dtype. Hk divides H: head h reads query and key h // (H/Hk).
        value: (B,H,N,Dv), query's dtype.
        log_decay: g, (H), (B,H,N) or (B,H,N,D), query's dtype or float32; 0 or below, −inf
            forgets everything before. Without it nothing is forgotten.
        bonus: u, (H,D), query's dtype or float32: ``out_t = scale·q_tᵀ (S_{t−1} + u∘k_t v_tᵀ)``.
        scale: a factor of out.
        causal: False: every query reads all keys of its sequence, and key and value may have M ≠ N
            positions (without cu_seqlens). With log_decay, bonus or exclusive_chunk it raises.
        normalize: out is divided by ``q_t·z_t + eps``, z_t the same recurrence on k alone. With
            bonus or exclusive_chunk it raises.
        eps: of normalize, 0 or above.
        exclusive_chunk: c > 0: position t reads the state before its chunk of c positions.
        initial_state: (B,H,D,Dv), float32 (float64 for float64). Zeros where it is not given.
        initial_norm: (B,H,D), as initial_state; not read without normalize.
        cu_seqlens: (sequences+1) int32 or int64, rising from 0 to at most N: the positions are
            those of several sequences, B is 1 and states have ``sequences`` in its place.

    Returns:
        out (B,H,N,Dv), contiguous, query's dtype; state (B,H,D,Dv), S after the last position;
        norm (B,H,D), z after the last position, zeros without normalize. The last two are float32
        (float64 for float64). All with gradient to all tensors but cu_seqlens.

    Raises:
        TypeError, RuntimeError (shapes, devices, offsets), ValueError (scale, eps, arguments that
        exclude each other).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> one = torch.ones(1, 1, 3, 1)
        >>> out, state, _ = F.linear_attention(one, one, one, log_decay=torch.tensor([0.5]).log())
        >>> out.flatten().tolist(), state.tolist()
        ([1.0, 1.5, 1.75], [[[[1.75]]]])
    """
    out, state, norm = torch.ops.fulgurite.linear_attention(
        query,
        key,
        value,
        log_decay=log_decay,
        bonus=bonus,
        scale=scale,
        causal=causal,
        normalize=normalize,
        eps=eps,
        exclusive_chunk=exclusive_chunk,
        initial_state=initial_state,
        initial_norm=initial_norm,
        cu_seqlens=cu_seqlens,
    )
    return out, state, norm
