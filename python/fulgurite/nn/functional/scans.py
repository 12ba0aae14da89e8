"""Convolutions and scans along positions as functions. The mathematics: docs/ops.

Legend: B batch, C channels, L positions, W width of a convolution.
"""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["causal_conv1d"]

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
