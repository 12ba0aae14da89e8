"""Mamba's block on its convolution and its scan."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from fulgurite._numbers import integer, number
from fulgurite.nn import functional as F
from fulgurite.nn.router import check_tokens
from fulgurite.nn.short_convolution import (
    ShortConvolution,
    check_positions,
    check_without_gradient,
)

LEAST_STEP = 1e-4  # of those drawn


class Mamba(nn.Module):
    """Mamba (Gu and Dao, 2023): ``out_proj(scan(convolution(u), δ, B, C)·silu(z))``.

    u and the gate z are projections of x; δ, B and C are projections of what the convolution
    gives, so that every position decides what its channel's states keep.

    Args:
        dim: width of the input and of the output.
        state_size: states N of a channel.
        width: positions W that the convolution sees.
        channels: C; None means ``2 * dim``.
        dt_rank: width of δ before its projection; None means ``ceil(dim / 16)``.
        dt_min, dt_max: between which the first δ are drawn, evenly in their logarithm.
        bias: add a bias in the outer projections.
        conv_bias: add a bias in the convolution.
        device, dtype: of the parameters.

    Parameters, named as transformers' ``MambaMixer`` names them: ``in_proj.weight`` (2·C, dim),
    ``conv1d.weight`` (C, 1, W), ``x_proj.weight`` (dt_rank + 2·N, C), ``dt_proj.weight``
    (C, dt_rank) and ``dt_proj.bias``, ``A_log`` (C, N), ``D`` (C), ``out_proj.weight`` (dim, C).
    Published recipes leave ``A_log`` and ``D`` out of weight decay.

    Raises:
        ValueError: numbers that make no sense; TypeError: what is no number.

    >>> mamba = Mamba(32)
    >>> mamba(torch.randn(2, 16, 32)).shape
    torch.Size([2, 16, 32])
    """

    __constants__: ClassVar = ["dim", "channels", "state_size", "dt_rank"]

    def __init__(
        self,
        dim: int,
        state_size: int = 16,
        width: int = 4,
        *,
        channels: int | None = None,
        dt_rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        bias: bool = False,
        conv_bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "Mamba"
        self.dim = integer(name, "dim", dim, 1)
        self.state_size = integer(name, "state_size", state_size, 1)
        width = integer(name, "width", width, 1)
        channels = 2 * self.dim if channels is None else channels
        self.channels = C = integer(name, "channels", channels, 1)
        dt_rank = math.ceil(self.dim / 16) if dt_rank is None else dt_rank
        self.dt_rank = integer(name, "dt_rank", dt_rank, 1)
        self.dt_min = number(name, "dt_min", dt_min, above=0)
        self.dt_max = number(name, "dt_max", dt_max, at_least=self.dt_min)
        self.in_proj = nn.Linear(self.dim, 2 * C, bias=bias, device=device, dtype=dtype)
        self.conv1d = ShortConvolution(C, width, bias=conv_bias, device=device, dtype=dtype)
        projected = self.dt_rank + 2 * self.state_size
        self.x_proj = nn.Linear(C, projected, bias=False, device=device, dtype=dtype)
        self.dt_proj = nn.Linear(self.dt_rank, C, device=device, dtype=dtype)
        self.A_log = nn.Parameter(torch.empty(C, self.state_size, device=device, dtype=dtype))
        self.D = nn.Parameter(torch.empty(C, device=device, dtype=dtype))
        self.out_proj = nn.Linear(C, self.dim, bias=bias, device=device, dtype=dtype)
        self._reset_scan()

    def reset_parameters(self) -> None:
        """Draw the parameters as the published code does.

        Projections as :class:`torch.nn.Linear` and the convolution as :class:`torch.nn.Conv1d`; A
        is −1 … −N, D is 1, and the first δ lie between ``dt_min`` and ``dt_max``.
        """
        for module in (self.in_proj, self.conv1d, self.x_proj, self.out_proj):
            module.reset_parameters()
        self._reset_scan()

    @torch.no_grad()
    def _reset_scan(self) -> None:
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        drawn = torch.rand(self.channels, device=self.D.device, dtype=torch.float32)
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        dt = (drawn * (high - low) + low).exp().clamp(min=LEAST_STEP)
        self.dt_proj.bias.copy_(dt + (-(-dt).expm1()).log())  # whose softplus is dt
        rates = torch.arange(1, self.state_size + 1, device=self.A_log.device, dtype=torch.float32)
        self.A_log.copy_(rates.log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def forward(
        self, x: Tensor, cu_seqlens: Tensor | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """Mix along positions.

        Args:
            x: (B, L, dim).
            cu_seqlens: (sequences+1) int32 or int64: B is 1, and no sequence sees another.
            token_mask: (B, L) bool; False, for padding: the position adds nothing to a state, and
                nothing that it holds is seen by another.

        Returns:
            (B, L, dim), in x's dtype (autocast's, inside autocast).

        Raises:
            TypeError, RuntimeError (shapes): an x of another width, a mask that is not x's, and
                what :func:`fulgurite.nn.functional.causal_conv1d` raises.
        """
        return self._mix(x, cu_seqlens, token_mask, None, None)[0]

    @torch.jit.export
    def make_cache(
        self, batch: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """An empty cache for :meth:`step`.

        Args:
            batch: sequences B.
            dtype, device: of the inputs, and where both lie; None means those of the convolution.

        Returns:
            ``(inputs, states)``: zeros (batch, C, W−1), and (batch, C, N) float32 (float64 for
            float64).
        """
        inputs = self.conv1d.make_cache(batch, dtype, device)
        wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        shape = [batch, self.channels, self.state_size]
        return inputs, torch.zeros(shape, dtype=wide, device=inputs.device)

    @torch.jit.export
    def step(
        self, x: Tensor, inputs: Tensor, states: Tensor, token_mask: Tensor | None = None
    ) -> Tensor:
        """Go on from a cache, which is written: a prompt, pieces of one, single positions.

        A call that raises has left the cache as it was. No gradient.

        Args:
            x: (B, N, dim), the new positions.
            inputs, states: from :meth:`make_cache`.
            token_mask: as of :meth:`forward`, (B, N): prompts of several lengths are padded on the
                left.

        Returns:
            (B, N, dim).

        Raises:
            TypeError, RuntimeError: as :meth:`forward`; a cache of another shape; inputs or weights
            that need a gradient outside of ``torch.no_grad()``.

        >>> mamba = Mamba(32)
        >>> inputs, states = mamba.make_cache(2)
        >>> with torch.no_grad():
        ...     prompt = mamba.step(torch.randn(2, 5, 32), inputs, states)
        ...     following = mamba.step(torch.randn(2, 1, 32), inputs, states)
        >>> prompt.shape, following.shape
        (torch.Size([2, 5, 32]), torch.Size([2, 1, 32]))
        """
        out, new_inputs, new_states = self._mix(x, None, token_mask, inputs, states)
        check_without_gradient("Mamba", out)
        inputs.copy_(new_inputs)
        states.copy_(new_states)
        return out

    def _mix(
        self,
        x: Tensor,
        cu_seqlens: Tensor | None,
        token_mask: Tensor | None,
        inputs: Tensor | None,
        states: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result, and the cache after it."""
        check_positions("Mamba", x, self.dim)
        check_tokens("Mamba", x, self.dim, token_mask)
        x = without_padding(x, token_mask)
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (B, L, C) each
        if inputs is not None:
            inputs = inputs.to(u.dtype)
        u, inputs = self.conv1d.convolve(u, inputs, cu_seqlens)
        u = without_padding(u, token_mask)
        sizes = [self.dt_rank, self.state_size, self.state_size]
        delta, B, C = self.x_proj(u).split(sizes, dim=-1)
        delta = nn.functional.linear(delta, self.dt_proj.weight)
        y, states = gated_scan(
            u, z, delta, B, C, self.A_log, self.D, self.dt_proj.bias, states, cu_seqlens
        )
        out: Tensor = self.out_proj(y)
        return out, inputs, states

    @classmethod
    def from_transformers(cls, mixer: nn.Module) -> "Mamba":
        """A copy of a ``MambaMixer`` of transformers 5, with its weights.

        Raises:
            TypeError: a layer of another class.
            NotImplementedError: an activation other than silu.
        """
        from fulgurite.integrations.transformers.mixers import mamba_parts

        options, state = mamba_parts(mixer)
        weight = state["in_proj.weight"]
        module = cls(**options, device=weight.device, dtype=weight.dtype)
        module.load_state_dict(state)
        return module.train(mixer.training)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, state_size={self.state_size}, dt_rank={self.dt_rank}"


def gated_scan(
    u: Tensor,
    z: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    A_log: Tensor,
    D: Tensor,
    delta_bias: Tensor | None,
    states: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The scan of u (B, L, C), all of whose companions have channels, or states, last too."""
    y, states = F.selective_scan(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        -A_log.to(states_dtype(A_log)).exp(),
        B.transpose(1, 2),
        C.transpose(1, 2),
        D=D,
        z=z.transpose(1, 2),
        delta_bias=delta_bias,
        delta_softplus=True,
        initial_state=states,
        cu_seqlens=cu_seqlens,
    )
    return y.transpose(1, 2), states


def states_dtype(x: Tensor) -> torch.dtype:
    """What a scan over x computes in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def without_padding(x: Tensor, token_mask: Tensor | None) -> Tensor:
    """x with zeros where the mask is False."""
    return x if token_mask is None else x.masked_fill(~token_mask.unsqueeze(-1), 0.0)
