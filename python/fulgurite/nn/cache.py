"""What a cache of keys and values must be to serve a call of ``Attention.decode``."""

import torch
from torch import Tensor

from fulgurite.nn.functional._inputs import check_dense


def check_cache(query: Tensor, key: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
    """Raise unless the cache belongs to sequences and heads of this key (B, Hkv, N, D)."""
    check_dense("Attention", "lengths", lengths)
    check_cached("keys", keys, key)
    check_cached("values", values, key)
    if values.dtype != keys.dtype:
        raise TypeError(f"Attention: expected values of {keys.dtype}, got {values.dtype}")
    if values.size(2) != keys.size(2):
        raise RuntimeError(
            f"Attention: expected values of shape {list(keys.shape)}, got {list(values.shape)}"
        )
    if lengths.dtype != torch.int64 and lengths.dtype != torch.int32:
        raise TypeError(f"Attention: expected lengths of int32 or int64, got {lengths.dtype}")
    if lengths.dim() != 1 or lengths.size(0) != query.size(0):
        raise RuntimeError(
            f"Attention: expected lengths of shape [{query.size(0)}], got {list(lengths.shape)}"
        )


def check_cached(name: str, cache: Tensor, key: Tensor) -> None:
    check_dense("Attention", name, cache)
    batch, heads, dim = key.size(0), key.size(1), key.size(3)
    if cache.dim() != 4 or [cache.size(0), cache.size(1), cache.size(3)] != [batch, heads, dim]:
        raise RuntimeError(
            f"Attention: expected {name} of shape [{batch}, {heads}, Mmax, {dim}], "
            f"got {list(cache.shape)}"
        )
    if cache.device != key.device:
        raise RuntimeError(f"Attention: expected {name} on {key.device}, got {cache.device}")
    if cache.requires_grad:
        raise RuntimeError(f"Attention: expected {name} without a gradient")


def check_decode_mask(mask: Tensor | None, shape: list[int]) -> None:
    """Raise unless the mask is bool and broadcasts to the shape."""
    if mask is None:
        return
    check_dense("Attention", "mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"Attention: expected mask of torch.bool, got {mask.dtype}")
    fits = mask.dim() <= len(shape)
    for dim in range(1, min(mask.dim(), len(shape)) + 1):
        fits = fits and (mask.size(-dim) == 1 or mask.size(-dim) == shape[-dim])
    if not fits:
        raise RuntimeError(
            f"Attention: expected mask that broadcasts to {shape}, got {list(mask.shape)}"
        )
