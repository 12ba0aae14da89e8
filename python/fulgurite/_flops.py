"""Formulas for ``torch.utils.flop_counter``: what the operators multiply and add.

They count as torch's own do for scaled_dot_product_attention: two for each product of two numbers,
every query with every key whatever masks, windows and layouts hide, nothing for what is done
element by element. The backward of attention counts five products, as torch's, whichever gradients
are asked for. Experts count every assignment of a token, and of the backward what its gradients
need. Lengths of sequences and caches are read where tensors hold numbers; under fake tensors a
sequence is as long as all together, a cache as long as it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

Formula = Callable[..., int]


def _readable(tensor: Tensor) -> bool:
    """Whether it holds numbers: not fake, functional or meta."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type != "meta"


def _pairs(query: Tensor, key: Tensor) -> int:
    """Queries times keys of (B,H,N,D) and (B,Hkv,M,D), over all query heads."""
    B, H, N, _ = query.shape
    return B * H * N * key.size(2)


def _packed_pairs(query: Tensor, cu_q: Tensor, cu_k: Tensor, keys: int) -> int:
    """The same of packed sequences, (Tq,H,D) and (Tk,Hkv,D)."""
    if not (_readable(cu_q) and _readable(cu_k)):
        return query.size(1) * query.size(0) * keys
    return query.size(1) * int((cu_q.long().diff() * cu_k.long().diff()).sum())


def _forward(pairs: int, query: Tensor, value: Tensor) -> int:
    """Scores and the weighted sum of values."""
    return 2 * pairs * (query.size(-1) + value.size(-1))


def _backward(pairs: int, query: Tensor, value: Tensor) -> int:
    """Scores once more, and the gradients of query and key; those of weights and value."""
    return 2 * pairs * (3 * query.size(-1) + 2 * value.size(-1))


def _attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> int:
    return _forward(_pairs(query, key), query, value)


def _attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    return _backward(_pairs(query, key), query, value)


def _attention_double_backward(
    gg_query: Tensor | None,
    gg_key: Tensor | None,
    gg_value: Tensor | None,
    gg_bias: Tensor | None,
    gg_sink: Tensor | None,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    output_mask: list[bool],
    **_: Any,
) -> int:
    """The products of csrc/attention/double_backward.cpp whose factors are given."""
    of_grad_out, _lse, of_query, of_key, of_value, *_rest = output_mask
    gq, gk, gv, go = (t is not None for t in (gg_query, gg_key, gg_value, grad_out))
    of_d = 1 + gq + gk + of_query * (1 + gk) + of_key * (1 + gq)
    of_dv = go + (go and gv) + of_grad_out * (1 + gv) + (of_value and go)
    return 2 * _pairs(query, key) * (of_d * query.size(-1) + of_dv * value.size(-1))


def _varlen(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, **_: Any) -> int:
    return _forward(_packed_pairs(query, cu_q, cu_k, key.size(0)), query, value)


def _varlen_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    **_: Any,
) -> int:
    return _backward(_packed_pairs(query, cu_q, cu_k, key.size(0)), query, value)


def _decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_lens: Tensor,
    *,
    page_table: Tensor | None = None,
    **_: Any,
) -> int:
    B, H, N, _D = query.shape
    if _readable(cache_lens):
        keys = int(cache_lens.sum())
    else:
        keys = B * key_cache.size(2) * (1 if page_table is None else page_table.size(1))
    return _forward(H * N * keys, query, value_cache)


def _expert_size(weight: Tensor) -> int:
    """What one assignment of a token meets of (E,·,·)."""
    return weight.size(1) * weight.size(2)


def _experts(x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, **_: Any) -> int:
    return 2 * ids.numel() * (_expert_size(w_in) + _expert_size(w_out))


def _experts_backward(
    grad: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    hidden: Tensor | None,
    *,
    output_mask: list[bool],
    **_: Any,
) -> int:
    of_x, of_weights, of_w_in, of_w_out, of_b_in, _of_b_out = output_mask
    of_hidden = of_x or of_weights or of_w_in or of_b_in
    again = hidden is None and (of_hidden or of_w_out)
    of_in = again + of_x + of_w_in
    of_out = of_hidden + of_w_out
    return 2 * ids.numel() * (of_in * _expert_size(w_in) + of_out * _expert_size(w_out))


def _grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor, **_: Any) -> int:
    return 2 * x.size(0) * _expert_size(weight)


def _grouped_mm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, offsets: Tensor, *, output_mask: list[bool], **_: Any
) -> int:
    of_x, of_weight, _of_bias = output_mask
    return (of_x + of_weight) * _grouped_mm(x, weight, offsets)


def _state_products(query: Tensor, key: Tensor, value: Tensor, read: int, written: int) -> int:
    """Products of D by Dv numbers, for every query and for every key."""
    B, H, M, Dv = value.shape
    return 2 * B * H * query.size(-1) * Dv * (read * query.size(2) + written * M)


def _linear_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> int:
    """Keys are written into the state, queries read it."""
    return _state_products(query, key, value, 1, 1)


def _linear_attention_backward(
    grad_out: Tensor | None,
    grad_state: Tensor | None,
    grad_norm: Tensor | None,
    out: Tensor | None,
    kept: Tensor,
    denominators: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    **_: Any,
) -> int:
    """States once more; the gradients of query and of states; those of key and of value."""
    return _state_products(query, key, value, 2, 3)


FORMULAS: dict[str, Formula] = {
    "attention": _attention,
    "_attention_backward": _attention_backward,
    "_attention_double_backward": _attention_double_backward,
    "attention_varlen": _varlen,
    "_attention_varlen_backward": _varlen_backward,
    "attention_decode": _decode,
    "moe_experts": _experts,
    "_moe_experts_forward": _experts,
    "_moe_experts_backward": _experts_backward,
    "moe_grouped_mm": _grouped_mm,
    "_moe_grouped_mm_backward": _grouped_mm_backward,
    "linear_attention": _linear_attention,
    "_linear_attention_forward": _linear_attention,
    "_linear_attention_backward": _linear_attention_backward,
}


def register() -> None:
    """Give torch's counter a formula for each operator that multiplies matrices."""
    for name, formula in FORMULAS.items():
        operator = getattr(torch.ops.fulgurite, name)
        if operator not in flop_registry:
            register_flop_formula(operator, get_raw=True)(formula)
