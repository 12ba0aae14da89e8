"""Root-mean-square normalisation for inputs of lower precision than the weight."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """:class:`torch.nn.RMSNorm`, computed in the wider of x's and the weight's dtype, rounded once.

    Inside autocast a projection is 16-bit and the weight float32; torch's module then warns and
    leaves its fused kernel. Needs a weight (``elementwise_affine=True``, the default).

    >>> norm = RMSNorm(8)
    >>> norm(torch.randn(3, 8, dtype=torch.bfloat16)).dtype
    torch.bfloat16
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., normalized_shape); returns x's shape and dtype."""
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        y = nn.functional.rms_norm(
            x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps
        )
        return y.to(x.dtype)
