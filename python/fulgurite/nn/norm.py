"""Root-mean-square normalisation for inputs of lower precision than the weight."""

from typing import Any

import torch
from torch import Tensor, nn

from fulgurite._numbers import optional_number
from fulgurite.nn.functional._inputs import check_float_input


class RMSNorm(nn.RMSNorm):
    """:class:`torch.nn.RMSNorm`, computed in the wider of x's and the weight's dtype, rounded once.

    Inside autocast a projection is 16-bit and the weight float32; torch's module then warns and
    leaves its fused kernel. Needs a weight (``elementwise_affine=True``, the default).

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
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        y = nn.functional.rms_norm(
            x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps
        )
        return y.to(x.dtype)
