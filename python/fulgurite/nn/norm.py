"""Root-mean-square normalisation."""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from fulgurite._numbers import optional_number
from fulgurite.nn.functional._inputs import check_float_input
from fulgurite.nn.functional.norms import rms_norm


def _eps(eps: Optional[float], float64: bool) -> float:
    """What torch's module takes where none is given: that of the type that is computed in."""
    if eps is not None:
        return eps
    return 2.220446049250313e-16 if float64 else 1.1920928955078125e-07


class RMSNorm(nn.RMSNorm):
    """:class:`torch.nn.RMSNorm` by ``rms_norm``: one pass over memory, rounded once.

    x and the weight may differ in dtype: inside autocast a projection is 16-bit and the weight
    float32. Needs a weight (``elementwise_affine=True``, the default).

    Raises:
        ValueError: ``elementwise_affine=False``; an eps below 0 or not finite.

    >>> norm = RMSNorm(8)
    >>> norm(torch.randn(3, 8, dtype=torch.bfloat16)).dtype
    torch.bfloat16
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not elementwise_affine:
            raise ValueError("RMSNorm: expected elementwise_affine=True, got False")
        eps = optional_number("RMSNorm", "eps", eps, at_least=0)
        super().__init__(normalized_shape, eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., normalized_shape); returns x's shape and dtype."""
        check_float_input("RMSNorm", "x", x)
        weight: Tensor = self.weight
        dims = weight.dim()
        float64 = x.dtype == torch.float64 or weight.dtype == torch.float64
        rows = x
        if float64:
            rows, weight = x.to(torch.float64), weight.to(torch.float64)
        if dims > 1:
            if x.shape[-dims:] != weight.shape:
                sizes = ", ".join([str(size) for size in weight.shape])
                raise RuntimeError(f"RMSNorm: expected x of shape [..., {sizes}], got {x.shape}")
            rows, weight = rows.flatten(-dims), weight.flatten()
        return rms_norm(rows, weight, _eps(self.eps, float64)).view(x.shape).to(x.dtype)
