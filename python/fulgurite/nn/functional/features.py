"""Random features of the softmax kernel, and the projections that they take.

Legend: B batch, H heads, N positions, D width, m rows of a projection.
"""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["favor_features", "orthogonal_projection"]

# Optional[...] instead of `... | None`, and no keyword-only arguments: what TorchScript compiles.


def favor_features(
    x: Tensor,
    projection: Tensor,
    is_query: bool,
    eps: float = 1e-4,
    kind: str = "positive",
    cu_seqlens: Optional[Tensor] = None,
) -> Tensor:
    r"""Performer's positive features, whose products estimate exp(q·k/√D); see
    docs/ops/favor_features.md.

    ``φ_j = M^-1/2·(exp(ω_j·x' − |x'|²/2 − c) + eps)`` with ``x' = D^-1/4·x``

    Args:
        x: (B,H,N,D), queries or keys, float64, float32, bfloat16 or float16, any strides.
        projection: (m,D), x's dtype or float32, from :func:`orthogonal_projection`.
        is_query: what c is: for queries a position's largest ω_j·x', for keys that of all of a
            head's positions. Neither changes attention, which is normalised.
        eps: added to every exponential, 0 or above.
        kind: "positive", or "hyperbolic": features of ω and of −ω, which vary less.
        cu_seqlens: (sequences+1) int32 or int64, rising from 0 to at most N: the positions are
            those of several sequences, B is 1, and c of keys is each sequence's own.

    Returns:
        (B,H,N,m), or (B,H,N,2m) for "hyperbolic", contiguous, x's dtype. With gradient to x and
        projection; c has none.

    Raises:
        TypeError, RuntimeError (shapes, devices, offsets), ValueError (kind, eps).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> x, projection = torch.randn(1, 2, 5, 8), F.orthogonal_projection(32, 8)
        >>> F.favor_features(x, projection, is_query=True).shape
        torch.Size([1, 2, 5, 32])
    """
    out: Tensor = torch.ops.fulgurite.favor_features(
        x, projection, is_query=is_query, eps=eps, kind=kind, cu_seqlens=cu_seqlens
    )
    return out


def orthogonal_projection(
    features: int,
    dim: int,
    dtype: Optional[torch.dtype] = None,
    device: Optional[torch.device] = None,
) -> Tensor:
    r"""Rows as normal ones are, but orthogonal in blocks of ``dim``: estimates vary less.

    Each block is the Q of a normal matrix, signs taken from R's diagonal, without which the rows
    favour one half of space; lengths are those of other normal rows. From torch's default
    generator.

    Args:
        features: rows m.
        dim: width D of a query.
        dtype, device: None means torch's defaults.

    Returns:
        (features, dim).

    Raises:
        ValueError: features below 0, dim below 1.

    Example:
        >>> import fulgurite.nn.functional as F
        >>> rows = F.orthogonal_projection(16, 8)
        >>> (rows[:8] @ rows[:8].T).fill_diagonal_(0).abs().max() < 1e-4
        tensor(True)
    """
    if features < 0 or dim < 1:
        raise ValueError(
            "orthogonal_projection: expected features of at least 0 and dim of at least 1, "
            f"got {features} and {dim}"
        )
    blocks = (features + dim - 1) // dim
    normal = torch.randn([blocks, dim, dim], dtype=torch.float64, device=device)
    q, r = torch.linalg.qr(normal)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)  # (blocks, D)
    rows = (q * signs.unsqueeze(-2)).transpose(-2, -1).reshape([-1, dim])[:features]
    lengths = torch.randn([features, dim], dtype=torch.float64, device=device)
    scaled: Tensor = rows * lengths.square().sum(1, keepdim=True).sqrt()
    return scaled.to(torch.empty([0], dtype=dtype).dtype)  # the default where it is None
