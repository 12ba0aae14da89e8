"""8-bit states in torch's own operations, for checkpoints: the codes of ``adamw_8bit_``.

See docs/ops/adamw_8bit_.md. The step itself reads and writes codes in its kernel.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 256
_CHUNK = BLOCK << 12  # elements that are worked on at once


@cache
def dynamic_map(signed: bool) -> Tensor:
    """The 256 values that codes stand for, rising, float32: 0 and 1, and in each of the seven
    decades below 1 the centres of equal parts of its upper nine tenths, with both signs if signed.
    """
    values = [0.0, 1.0]
    for i in range(7):
        parts = 2**i if signed else 2 ** (i + 1)
        decade = [10.0 ** (i - 6) * (0.1 + 0.9 * (j + 0.5) / parts) for j in range(parts)]
        values += decade + ([-value for value in decade] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float64, device="cpu").float()


def zero_code(signed: bool) -> int:
    """The code of 0."""
    return 127 if signed else 0


def memory_order(tensor: Tensor) -> tuple[int, ...]:
    """The dims from the slowest to the fastest in memory, those of one element left out."""
    dims = [d for d in range(tensor.dim()) if tensor.size(d) != 1]
    return tuple(sorted(dims, key=tensor.stride, reverse=True))


def _flat(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The elements with the dims in this order, one after the other."""
    rest = [d for d in range(tensor.dim()) if d not in order]
    return tensor.permute(*rest, *order).reshape(-1)


def _unflat(flat: Tensor, like: Tensor, order: tuple[int, ...]) -> Tensor:
    rest = [d for d in range(like.dim()) if d not in order]
    dims = [*rest, *order]
    shaped = flat.reshape([like.size(d) for d in dims])
    result = torch.empty_like(like, dtype=flat.dtype)
    return result.copy_(shaped.permute([dims.index(d) for d in range(like.dim())]))


def quantize(values: Tensor, signed: bool, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Nearest codes (uint8, in the shape of the values) and the largest magnitude of each block."""
    table = dynamic_map(signed).double().to(values.device)
    middles = (table[1:] + table[:-1]) / 2
    codes, scales = [], []
    for chunk in _flat(values, order).split(_CHUNK):
        rows = torch.nn.functional.pad(chunk.double(), (0, -len(chunk) % BLOCK)).view(-1, BLOCK)
        scale = rows.abs().amax(1).float()
        usable = (scale > 0) & scale.isfinite()
        quotient = torch.where(usable[:, None], rows / scale[:, None].double(), 0.0)
        codes.append(torch.bucketize(quotient, middles).to(torch.uint8).view(-1)[: len(chunk)])
        scales.append(scale)
    return _unflat(torch.cat(codes), values, order), torch.cat(scales)


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """map[code]·scale, float32; the blocks lie in the memory order of the codes."""
    order = memory_order(codes)
    table = dynamic_map(signed).to(codes.device)
    flat = [
        table[part.int()] * own.repeat_interleave(BLOCK)[: len(part)]
        for part, own in zip(
            _flat(codes, order).split(_CHUNK), scales.split(_CHUNK // BLOCK), strict=True
        )
    ]
    return _unflat(torch.cat(flat), codes, order)
