"""References of convolutions and scans.

B batch, C channels (D of a scan), L positions, W width, N states of a channel.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as tF
from torch import Tensor

Run = Callable[[slice, Tensor | None], tuple[Tensor, Tensor]]


def sequences_of(
    run: Run, length: int, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``run(positions, state)`` of every sequence, side by side: positions past the last are 0."""
    if cu_seqlens is None:
        return run(slice(0, length), state)
    bounds = cu_seqlens.tolist()
    results = [
        run(slice(a, b), None if state is None else state[s : s + 1])
        for s, (a, b) in enumerate(pairwise(bounds))
    ]
    tail, nobodys = run(slice(bounds[-1], length), None)
    outs = [*(out for out, _ in results), torch.zeros_like(tail)]
    return torch.cat(outs, -1), torch.cat([*(last for _, last in results), nobodys[:0]])


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """W shifted products of each sequence behind the inputs before it."""
    W = weight.shape[1]

    def run(span: slice, state: Tensor | None) -> tuple[Tensor, Tensor]:
        own = x[..., span]
        past = own.new_zeros(*own.shape[:2], W - 1) if state is None else state
        line, n = torch.cat([past, own], -1), own.shape[-1]
        y = weight[:, 0, None] * line[..., :n]
        for w in range(1, W):
            y = y + weight[:, w, None] * line[..., w : w + n]
        y = y if bias is None else y + bias[:, None]
        y = tF.silu(y) if activation == "silu" else y
        return y.to(x.dtype), line[..., n:]

    return sequences_of(run, x.shape[-1], initial_state, cu_seqlens)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Position by position. 16-bit inputs are widened: the states are float32 in any case."""
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, steps, A = u.to(wide), delta.to(wide), A.to(wide)
    if delta_bias is not None:
        steps = steps + delta_bias.to(wide)[:, None]
    if delta_softplus:
        steps = tF.softplus(steps)
    columns = [t.to(wide) if t.dim() == 4 else t.to(wide)[:, None] for t in (B, C)]
    # (B,D,N,L): channel d reads group d // (D/G)
    into, out_of = (t.repeat_interleave(u.shape[1] // t.shape[1], 1) for t in columns)

    def run(span: slice, state: Tensor | None) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(u.shape[0], *A.shape) if state is None else state
        rows = [x[..., span][..., :0]]
        for t in range(u.shape[-1])[span]:
            step = steps[..., t, None]
            h = torch.exp(step * A) * h + step * x[..., t, None] * into[..., t]
            rows.append((h * out_of[..., t]).sum(-1, keepdim=True))
        y = torch.cat(rows, -1)
        y = y if D is None else y + D.to(wide)[:, None] * x[..., span]
        return y if z is None else y * tF.silu(z[..., span].to(wide)), h

    out, last = sequences_of(run, u.shape[-1], initial_state, cu_seqlens)
    return out.to(u.dtype), last
