"""``scaled_dot_product_attention`` in terms of ``fulgurite::attention``: batches, heads, masks."""

from __future__ import annotations

import torch
from torch import Tensor

from fulgurite.nn import functional as F

NAME = "fulgurite: scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's function of this name with its arguments and meaning, by ``fulgurite::attention``.

    Args:
        query: (..., Hq, N, D) of 2 to 4 dimensions.
        key, value: (..., Hkv, M, D) and (..., Hkv, M, Dv). All but the last two dimensions
            broadcast; with enable_gqa Hq is a multiple of Hkv.
        attn_mask: bool, True keeps the pair, or numbers that are added to the scores, with a
            gradient; broadcastable to (..., Hq, N, M).
        dropout_p: probability of dropping a pair's weight; the random numbers are fulgurite's.
        is_causal: query i keeps keys j ≤ i: torch's alignment, upper left.
        scale: factor of the products; None is 1/√D.
        enable_gqa: query head h uses key and value head h // (Hq / Hkv).

    Returns:
        (..., Hq, N, Dv) in query's dtype. A row that keeps nothing is 0.

    Raises:
        RuntimeError, TypeError, ValueError, NotImplementedError: before anything is computed.
    """
    check(query, key, value, attn_mask, is_causal)
    dims = max(x.dim() for x in (query, key, value))
    query, key, value = (four_dims(x) for x in (query, key, value))
    batch = broadcast("batches", [x.size(0) for x in (query, key, value)])
    if enable_gqa:
        heads = query.size(1)
        key, value = same_heads(key, value, heads)
    else:
        heads = broadcast("heads", [x.size(1) for x in (query, key, value)])
        if key.size(1) != value.size(1):
            key, value = (x.expand(-1, heads, -1, -1) for x in (key, value))
    if dropout_p == 1.0:  # drops every pair
        attn_mask, dropout_p = query.new_zeros((1, 1), dtype=torch.bool), 0.0
    is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    out: Tensor = F.attention(
        query.expand(batch, heads, -1, -1),
        key.expand(batch, -1, -1, -1),
        value.expand(batch, -1, -1, -1),
        mask=attn_mask if is_bool else None,
        bias=None if is_bool else attn_mask,
        scale=scale,
        causal=is_causal,
        align="top_left",
        dropout_p=dropout_p,
    )
    return out.reshape(out.shape[4 - dims :])


def check(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> None:
    """Raise for what torch refuses too, and for what has no counterpart here."""
    for name, x in {"query": query, "key": key, "value": value, "attn_mask": attn_mask}.items():
        if x is not None and not (x.dim() <= 4 and (x is attn_mask or x.dim() >= 2)):
            raise NotImplementedError(
                f"{NAME}: expected {name} of 2 to 4 dimensions, got {list(x.shape)}"
            )
    if is_causal and attn_mask is not None:
        raise RuntimeError(f"{NAME}: expected no attn_mask with is_causal=True, got one")


def four_dims(x: Tensor) -> Tensor:
    """x with dimensions of size 1 before its own."""
    return x[(None,) * (4 - x.dim())]


def broadcast(what: str, sizes: list[int]) -> int:
    """The size that all of them broadcast to."""
    wanted = next((size for size in sizes if size != 1), 1)
    if any(size not in (1, wanted) for size in sizes):
        raise RuntimeError(f"{NAME}: expected {what} that broadcast, got {sizes}")
    return wanted


def same_heads(key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Key and value with as many heads as each other, which divide the query's."""
    of_key, of_value = key.size(1), value.size(1)
    if 0 in (of_key, of_value) or heads % of_key or heads % of_value:
        raise RuntimeError(
            f"{NAME}: expected {heads} heads of query to be a multiple of key's and value's,"
            f" got {of_key} and {of_value}"
        )
    if of_key != of_value:
        key = key.repeat_interleave(heads // of_key, 1)
        value = value.repeat_interleave(heads // of_value, 1)
    return key, value
