"""Reference of linear attention.

B batch, H heads, Hk heads of query and key, N queries, M keys, D and Dv widths.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor, Tensor]


def factors(log_decay: Tensor | None, like: Tensor) -> Tensor:
    """exp(log_decay) of any of its shapes as (B,H,N,D), the shape of ``like``."""
    if log_decay is None:
        return torch.ones_like(like)
    g = log_decay.to(like.dtype)
    g = g[:, None, None] if g.dim() == 1 else g[..., None] if g.dim() == 3 else g
    return g.exp().expand_as(like)


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_decay: Tensor | None = None,
    bonus: Tensor | None = None,
    scale: float = 1.0,
    causal: bool = True,
    normalize: bool = False,
    eps: float = 1e-6,
    exclusive_chunk: int = 0,
    initial_state: Tensor | None = None,
    initial_norm: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Results:
    """Position by position. 16-bit inputs are widened for the states, which are float32 in any
    case; what is read of them, and the quotient, are in the inputs' dtype."""
    dtype = query.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    H, D, Dv = value.shape[1], query.shape[-1], value.shape[-1]
    q, k = (
        t.to(wide).repeat_interleave(H // t.shape[1] if H else 1, 1)[:, :H] for t in (query, key)
    )
    v = value.to(wide)
    a = factors(log_decay, q)

    def read(q: Tensor, S: Tensor, z: Tensor) -> Tensor:
        """(B,H,1,Dv)"""
        num = (q[..., None] * S).sum(-2).to(dtype)
        if normalize:
            den = (q * z).sum(-1, keepdim=True).to(dtype)
            return (scale * num / (den + eps))[:, :, None]
        return (scale * num)[:, :, None]

    def step(t: int, S: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kv = k[:, :, t, :, None] * v[:, :, t, None]
        return kv, a[:, :, t, :, None] * S + kv, a[:, :, t] * z + k[:, :, t]

    def run(first: int, last: int, S: Tensor, z: Tensor) -> Results:
        outs = [q.new_zeros(q.shape[0], H, 0, Dv).to(dtype)]
        seen = S
        for t in range(first, last):
            if exclusive_chunk > 0 and (t - first) % exclusive_chunk == 0:
                seen = S
            before = S
            kv, S, z = step(t, S, z)
            if bonus is not None:
                seen = before + bonus.to(wide)[:, :, None] * kv
            elif exclusive_chunk == 0:
                seen = S
            outs.append(read(q[:, :, t], seen, z))
        return torch.cat(outs, 2), S, z

    def run_not_causal(first: int, last: int, keys: int, S: Tensor, z: Tensor) -> Results:
        for t in range(first, keys):
            S, z = S + k[:, :, t, :, None] * v[:, :, t, None], z + k[:, :, t]
        outs = [read(q[:, :, t], S, z) for t in range(first, last)]
        return torch.cat([q.new_zeros(q.shape[0], H, 0, Dv).to(dtype), *outs], 2), S, z

    N, M = query.shape[2], key.shape[2]
    bounds = [0, N] if cu_seqlens is None else cu_seqlens.tolist()
    batch = query.shape[0] if cu_seqlens is None else 1
    results: list[Results] = []
    for s, (first, last) in enumerate(pairwise(bounds)):
        one = slice(None) if cu_seqlens is None else slice(s, s + 1)
        S = v.new_zeros(batch, H, D, Dv) if initial_state is None else initial_state[one]
        z = v.new_zeros(batch, H, D) if initial_norm is None else initial_norm[one]
        if causal:
            results.append(run(first, last, S, z))
        else:
            results.append(run_not_causal(first, last, M if cu_seqlens is None else last, S, z))
    tail = v.new_zeros(v.shape[0], H, N - bounds[-1], Dv).to(dtype)
    outs, states, norms = ([r[i] for r in results] for i in range(3))
    nobodys = k[:, :, :0].transpose(-1, -2) @ v[:, :, :0]
    state = torch.cat([*states, nobodys[:0]])
    norm = torch.cat([*norms, k[:0, :, :0].sum(2)])
    return torch.cat([*outs, tail], 2), state, norm if normalize else torch.zeros_like(norm)
