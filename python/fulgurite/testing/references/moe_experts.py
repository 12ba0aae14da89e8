"""References of the experts: one expert after the other.

T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(gate: Tensor, activation: str) -> Tensor:
    """The activations that stand for themselves; "swiglu_oai" is ``gated_oai``."""
    if activation == "silu":
        return F.silu(gate)
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(gate, approximate="none" if activation == "gelu" else "tanh")
    positive = F.relu(gate)
    return positive if activation == "relu" else positive.square()


def gated_oai(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    """gate · σ(alpha · gate) · (up + 1), both clamped where limit > 0."""
    bound = limit if limit > 0 else math.inf
    gate, up = gate.clamp(max=bound), up.clamp(-bound, bound)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def moe_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    *,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    activation: str = "silu",
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    alpha: float = 1.0,
    limit: float = 0.0,
    save_hidden: bool = True,
) -> Tensor:
    """y_t = Σ_j w_tj · (W_out h(W_in x_t + b_in) + b_out), one expert after the other.

    ``save_hidden`` changes what is kept in memory and nothing else.
    """
    del save_hidden
    if transposed:
        w_in, w_out = w_in.mT, w_out.mT
    y = torch.zeros_like(x)
    for e in range(w_in.shape[0]):
        tokens, choices = torch.where(ids == e)
        hidden = x[tokens] @ w_in[e].T
        if b_in is not None:
            hidden = hidden + b_in[e]
        if not gated:
            h = activate(hidden, activation)
        else:
            pairs = (hidden[:, ::2], hidden[:, 1::2]) if interleaved else hidden.chunk(2, dim=-1)
            gate, up = pairs
            if activation == "swiglu_oai":
                h = gated_oai(gate, up, alpha, limit)
            else:
                h = activate(gate, activation) * up
        rows = h @ w_out[e].T
        if b_out is not None:
            rows = rows + b_out[e]
        rows = rows * weights[tokens, choices, None].to(rows.dtype)
        y = y.index_add(0, tokens, rows)
    return y


def moe_grouped_mm(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """Rows offsets[e] to offsets[e+1] of x times weight[e]; 0 past offsets[E]."""
    matrices = weight if transposed else weight.mT
    ends = offsets.tolist()
    parts = [x[:0] @ x.new_zeros(x.shape[1], matrices.shape[2])]  # x has a gradient without experts
    for e, matrix in enumerate(matrices):
        rows = x[ends[e] : ends[e + 1]] @ matrix
        parts.append(rows if bias is None else rows + bias[e])
    parts.append(x.new_zeros(x.shape[0] - ends[-1], matrices.shape[2]))
    return torch.cat(parts)
