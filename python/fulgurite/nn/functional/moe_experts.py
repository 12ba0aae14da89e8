"""The experts of a mixture as functions. The mathematics: docs/ops/moe_experts.md.

Legend: T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["moe_experts", "moe_grouped_mm"]

# Optional[...] instead of `... | None`, and no keyword-only arguments: what TorchScript compiles.


def moe_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Optional[Tensor] = None,
    b_out: Optional[Tensor] = None,
    activation: str = "silu",
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    alpha: float = 1.0,
    limit: float = 0.0,
    save_hidden: bool = True,
) -> Tensor:
    r"""The feed-forward of all experts; see docs/ops/moe_experts.md.

    ``y_t = Σ_j weights[t,j] · (W_out h(W_in x_t + b_in) + b_out)`` with the matrices of expert
    ``ids[t,j]``, where ``h = activation(gate) · up``, or ``activation(W_in x_t + b_in)`` if not
    gated.

    Args:
        x: (T,H), float64, float32, bfloat16 or float16.
        ids: (T,K) int32 or int64; an id outside [0, E) contributes nothing.
        weights: (T,K), float32, float64 or x's dtype.
        w_in: (E,2I,H) in x's dtype, gate rows then up rows; (E,I,H) if not gated.
        w_out: (E,H,I) in x's dtype.
        b_in: (E,2I) in x's dtype, in the order of w_in's rows; (E,I) if not gated.
        b_out: (E,H) in x's dtype.
        activation: "silu", "gelu", "gelu_tanh", "relu", "relu2" or "swiglu_oai": ``gate ·
            σ(alpha · gate) · (up + 1)``, gated only.
        gated: w_in gives gate and up, not the hidden layer alone.
        interleaved: the rows of w_in, and b_in, are gate, up, gate, up, …
        transposed: w_in is (E,H,2I) (or (E,H,I)) and w_out (E,I,H).
        alpha: of "swiglu_oai".
        limit: of "swiglu_oai": where it is above 0, gate is clamped from above to it and up to
            ± limit.
        save_hidden: keep gate and up, 2·T·K·I numbers of float32 (float64 for float64), for the
            backward; without it they are computed again.

    Returns:
        (T,H) in x's dtype. Sums are in float32 (float64 for float64) and rounded once. Gradients to
        x, weights, w_in, w_out, b_in and b_out; an expert without tokens has zero gradients.

    Raises:
        TypeError, RuntimeError (shapes, devices, 2³¹ or more assignments), ValueError (activation,
        alpha or limit with an activation that has none, interleaved or "swiglu_oai" without gated).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> x, logits = torch.randn(10, 16), torch.randn(10, 4)
        >>> w_in, w_out = torch.randn(4, 2 * 32, 16), torch.randn(4, 16, 32)
        >>> weights, ids, counts = F.moe_route(logits, 2)
        >>> F.moe_experts(x, ids, weights, w_in, w_out).shape
        torch.Size([10, 16])
    """
    y: Tensor = torch.ops.fulgurite.moe_experts(
        x,
        ids,
        weights,
        w_in,
        w_out,
        b_in=b_in,
        b_out=b_out,
        activation=activation,
        gated=gated,
        interleaved=interleaved,
        transposed=transposed,
        alpha=alpha,
        limit=limit,
        save_hidden=save_hidden,
    )
    return y


def moe_grouped_mm(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Optional[Tensor] = None,
    transposed: bool = False,
) -> Tensor:
    r"""Multiply the rows of each expert with its matrix; see docs/ops/moe_grouped_mm.md.

    ``y[offsets[e]:offsets[e+1]] = x[offsets[e]:offsets[e+1]] · weight[e]ᵀ + bias[e]``

    Args:
        x: (rows,K), float64, float32, bfloat16 or float16, sorted by expert
            (:func:`moe_permute`).
        weight: (E,N,K) in x's dtype, a Linear's layout; (E,K,N) if transposed.
        offsets: (E+1) int64, rising from 0 to at most the number of rows (:func:`moe_plan`).
        bias: (E,N) in x's dtype.
        transposed: the layout of weight.

    Returns:
        (rows,N) in x's dtype; rows past offsets[E] are 0, and so is their gradient. Gradients to
        x, weight and bias; an expert without rows has zero gradients.

    Raises:
        TypeError, RuntimeError (shapes, devices, offsets that do not rise).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> x, weight = torch.ones(3, 2), torch.tensor([[[1.0, 1.0]], [[2.0, 3.0]]])
        >>> F.moe_grouped_mm(x, weight, torch.tensor([0, 1, 2])).flatten().tolist()
        [2.0, 5.0, 0.0]
    """
    y: Tensor = torch.ops.fulgurite.moe_grouped_mm(
        x, weight, offsets, bias=bias, transposed=transposed
    )
    return y
