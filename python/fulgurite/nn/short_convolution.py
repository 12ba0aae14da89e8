"""The causal convolution in front of Mamba and of gated linear attention, as a module."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from fulgurite._numbers import integer
from fulgurite.nn import functional as F
from fulgurite.nn.functional._inputs import check_float_input

ACTIVATIONS = ("none", "silu")


class ShortConvolution(nn.Module):
    """Every channel convolved along positions with a filter of its own that sees no later input.

    Args:
        channels: C.
        width: positions W that a filter sees, its own among them.
        activation: "silu" or "none".
        bias: add a bias.
        device, dtype: of the parameters.

    Parameters: ``weight`` (C, 1, W) and ``bias`` (C), drawn and named as those of
    ``torch.nn.Conv1d(C, C, W, groups=C)``, from which checkpoints load.

    Raises:
        ValueError: numbers that make no sense, another activation; TypeError: what is no number.

    >>> convolution = ShortConvolution(8)
    >>> convolution(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    __constants__: ClassVar = ["channels", "width", "activation"]

    bias: Tensor | None

    def __init__(
        self,
        channels: int,
        width: int = 4,
        *,
        activation: str = "silu",
        bias: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "ShortConvolution"
        self.channels = integer(name, "channels", channels, 1)
        self.width = integer(name, "width", width, 1)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{name}: expected activation of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        self.activation = activation
        shape = (self.channels, 1, self.width)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias",
            nn.Parameter(torch.empty(self.channels, device=device, dtype=dtype)) if bias else None,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from ±1/√W, as :class:`torch.nn.Conv1d` does."""
        bound = 1.0 / math.sqrt(self.width)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (B, L, C).
            cu_seqlens: (sequences+1) int32 or int64: B is 1, and no sequence sees another.

        Returns:
            (B, L, C), in x's dtype (autocast's, inside autocast), its channels L apart in memory.

        Raises:
            TypeError, RuntimeError (shapes): an x that is not (B, L, C), and what
            :func:`fulgurite.nn.functional.causal_conv1d` raises.
        """
        return self.convolve(x, None, cu_seqlens)[0]

    @torch.jit.export
    def make_cache(
        self, batch: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor:
        """An empty cache for :meth:`step`: zeros (batch, C, W−1); None means weight's."""
        if batch < 0:
            raise ValueError(f"ShortConvolution: expected batch of at least 0, got {batch}")
        return torch.zeros(
            [batch, self.channels, self.width - 1],
            dtype=self.weight.dtype if dtype is None else dtype,
            device=self.weight.device if device is None else device,
        )

    @torch.jit.export
    def step(self, x: Tensor, cache: Tensor) -> Tensor:
        """Go on behind the inputs in the cache, which is written. No gradient.

        Pieces, down to single positions, give the bits of the whole.

        Args:
            x: (B, N, C).
            cache: from :meth:`make_cache`, in the dtype that the convolution computes in.

        Returns:
            (B, N, C).

        Raises:
            RuntimeError: inputs or weights that need a gradient outside of ``torch.no_grad()``.
        """
        out, state = self.convolve(x, cache, None)
        check_without_gradient("ShortConvolution", out)
        cache.copy_(state)
        return out

    def convolve(
        self, x: Tensor, inputs: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The result of x (B, L, C) behind ``inputs``, and the inputs before the next call."""
        check_positions("ShortConvolution", x, self.channels)
        out, state = F.causal_conv1d(
            x.transpose(1, 2),
            self.weight.squeeze(1),
            self.bias,
            self.activation,
            inputs,
            cu_seqlens,
        )
        return out.transpose(1, 2), state

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, width={self.width}, activation={self.activation!r}, "
            f"bias={self.bias is not None}"
        )


def check_positions(name: str, x: Tensor, dim: int) -> None:
    """Raise unless x is (B, L, dim) of floats."""
    check_float_input(name, "x", x)
    if x.dim() != 3 or x.size(2) != dim:
        raise RuntimeError(f"{name}: expected x of shape [B, L, {dim}], got {list(x.shape)}")


def check_without_gradient(name: str, out: Tensor) -> None:
    """Raise where a result of ``step`` wants a gradient, which the cache would not carry on."""
    if out.requires_grad:
        raise RuntimeError(
            f"{name}: expected step without gradients, got x or weights that require one; "
            "call it inside torch.no_grad() or torch.inference_mode()"
        )
