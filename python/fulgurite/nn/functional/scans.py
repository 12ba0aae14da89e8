"""Convolutions and scans along positions as functions. The mathematics: docs/ops.

Legend: B batch, C channels (D of a scan), L positions, W width of a convolution, N states of a
channel, G groups.
"""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["causal_conv1d", "selective_scan"]

# Optional[...] instead of `... | None`, and no keyword-only arguments: what TorchScript compiles.


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    activation: str = "none",
    initial_state: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    r"""Convolve every channel with a filter of its own that sees no later input; see
    docs/ops/causal_conv1d.md.

    ``out[:, :, t] = act(bias + Σ_w weight[:, w]·x[:, :, t − W + 1 + w])``

    Args:
        x: (B,C,L), float64, float32, bfloat16 or float16, any strides: (B,L,C) transposed is as
            good as contiguous.
        weight: (C,W), W ≥ 1, x's dtype or float32. ``weight[:, -1]`` meets the newest input.
        bias: (C), x's dtype or float32.
        activation: "none" or "silu".
        initial_state: (B,C,W−1), x's dtype: the inputs before the first, newest last. Zeros where
            it is not given.
        cu_seqlens: (sequences+1) int32 or int64, rising from 0 to at most L: the positions are
            those of several sequences, B is 1 and states have ``sequences`` in its place.

    Returns:
        out (B,C,L), contiguous, x's dtype; state (B,C,W−1), the last W−1 inputs, those of
        initial_state where the call is shorter. Both with gradient to x, weight, bias and
        initial_state.

    Raises:
        TypeError, RuntimeError (shapes, devices, offsets), ValueError (activation).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> x, weight = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[10.0, 1.0]])
        >>> out, state = F.causal_conv1d(x, weight)
        >>> out.tolist(), state.tolist()
        ([[[1.0, 12.0, 23.0, 34.0]]], [[[4.0]]])
        >>> F.causal_conv1d(x[:, :, :1], weight, initial_state=state)[0].tolist()
        [[[41.0]]]
    """
    out, state = torch.ops.fulgurite.causal_conv1d(
        x,
        weight,
        bias=bias,
        activation=activation,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
    )
    return out, state


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    delta_bias: Optional[Tensor] = None,
    delta_softplus: bool = False,
    initial_state: Optional[Tensor] = None,
    cu_seqlens: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    r"""Mamba's scan, N states a channel; see docs/ops/selective_scan.md.

    ``x_t = exp(δ_t A)·x_{t−1} + δ_t B_t u_t``, ``out_t = (Σ_n C_t x_t + D u_t)·silu(z_t)`` with
    ``δ = delta + delta_bias``, or softplus of it.

    Args:
        u: (B,D,L), float64, float32, bfloat16 or float16, any strides: (B,L,D) transposed is as
            good as contiguous.
        delta: (B,D,L), like all other inputs but z of u's dtype or float32.
        A: (D,N), 0 or below for states that do not grow.
        B, C: (B,N,L), or (B,G,N,L) with G dividing D: channel d reads group d // (D/G).
        D: (D).
        z: (B,D,L), u's dtype.
        delta_bias: (D).
        delta_softplus: whether δ is softplus of the sum.
        initial_state: (B,D,N), float32 (float64 for float64). Zeros where it is not given.
        cu_seqlens: (sequences+1) int32 or int64, rising from 0 to at most L: the positions are
            those of several sequences, B is 1 and states have ``sequences`` in its place.

    Returns:
        out (B,D,L), contiguous, u's dtype; state (B,D,N), x after the last position, float32
        (float64 for float64). Both with gradient to all tensors but cu_seqlens.

    Raises:
        TypeError, RuntimeError (shapes, devices, offsets).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> u, delta = torch.ones(1, 1, 3), torch.ones(1, 1, 3)
        >>> A, columns = torch.tensor([[0.0]]), torch.ones(1, 1, 3)
        >>> out, state = F.selective_scan(u, delta, A, columns, columns)
        >>> out.tolist(), state.tolist()
        ([[[1.0, 2.0, 3.0]]], [[[3.0]]])
    """
    out, state = torch.ops.fulgurite.selective_scan(
        u,
        delta,
        A,
        B,
        C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
    )
    return out, state
