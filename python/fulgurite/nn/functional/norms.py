"""Normalisation of rows as functions. The mathematics: docs/ops.

Legend: H width of a row.
"""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["rms_norm"]

# Optional[...] instead of `... | None`, and no keyword-only arguments: what TorchScript compiles.


def rms_norm(
    x: Tensor, weight: Optional[Tensor] = None, eps: float = 1e-6, weight_shift: float = 0.0
) -> Tensor:
    r"""Divide every row by the root of its mean square; see docs/ops/rms_norm.md.

    ``out = x / sqrt(mean(x²) + eps) · (weight + weight_shift)``, over the last dimension.

    Args:
        x: (..., H), float64, float32, bfloat16 or float16, any strides.
        weight: (H), float32, bfloat16 or float16; beside x of float64 float64.
        eps: at least 0.
        weight_shift: what is added to the weight: 1 for weights that are stored around 0, as
            Gemma's. 0 without a weight.

    Returns:
        (..., H), contiguous, x's dtype. With gradient to x and weight.

    Raises:
        TypeError, RuntimeError (shapes, devices), ValueError (eps, weight_shift).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> F.rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([5.0, 10.0]), eps=0.0)
        tensor([[ 4.2426, 11.3137]])
    """
    out: Tensor = torch.ops.fulgurite.rms_norm(x, weight, eps=eps, weight_shift=weight_shift)
    return out
