"""Split masters: every float32 comes back; high is the nearest bfloat16, ties away from zero."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common_checks import FULL


def from_bits(bits: Tensor) -> Tensor:
    return bits.to(torch.int64).to(torch.int32).view(torch.float32)


def patterns() -> Tensor:
    """Every upper half with the lower halves around zero, the tie and the end."""
    upper = torch.arange(1 << 16).repeat_interleave(7) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF]).repeat(1 << 16)
    return from_bits(upper | lower)


def test_every_kind_of_float_comes_back(isa: str) -> None:
    values = patterns()
    high, low = torch.ops.fulgurite.split_master(values)
    joined = torch.ops.fulgurite.join_master(high, low)
    nan = values.isnan()
    assert torch.equal(joined[~nan].view(torch.int32), values[~nan].view(torch.int32))
    assert joined[nan].isnan().all()
    assert (low[nan] == 0).all()
    quiet = high[nan].view(torch.int16) & 0x40
    assert (quiet != 0).all()
    assert torch.equal(high[nan].view(torch.int16) < 0, values[nan].view(torch.int32) < 0)


def test_high_is_nearest_with_ties_away_from_zero(isa: str) -> None:
    values = patterns()
    values = values[values.isfinite()]
    high, _ = torch.ops.fulgurite.split_master(values)
    bits = values.view(torch.int32).long()
    magnitude = bits & 0x7FFFFFFF
    expected = ((magnitude + 0x8000) >> 16) << 16
    found = (high.view(torch.int16).long() & 0x7FFF) << 16
    assert torch.equal(found, expected)
    ties = (magnitude & 0xFFFF) == 0x8000
    inside = ties & (high.float().abs() < torch.inf)
    assert (high[inside].float().abs() > values[inside].abs()).all()


def test_the_largest_float_has_an_infinite_high() -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max])
    high, low = torch.ops.fulgurite.split_master(largest)
    assert high.item() == torch.inf
    assert low.item() == -1
    assert torch.ops.fulgurite.join_master(high, low).item() == largest.item()


def test_sizes_and_tails(isa: str) -> None:
    values = patterns()[1000:1100]
    whole = torch.ops.fulgurite.split_master(values)
    for n in (*range(20), 63, 64, 65):
        high, low = torch.ops.fulgurite.split_master(values[:n])
        assert torch.equal(high, whole[0][:n])
        assert torch.equal(low, whole[1][:n])


def test_all_floats(isa: str) -> None:
    """All 2³² of them with FULGURITE_FULL=1, one in 997 otherwise."""
    step = 1 if FULL else 997
    block = 1 << 24
    for start in range(0, 1 << 32, block * step):
        bits = np.arange(start, min(start + block * step, 1 << 32), step, dtype=np.uint64)
        values = torch.from_numpy(bits.astype(np.uint32).view(np.float32))
        values = values[~values.isnan()]
        joined = torch.ops.fulgurite.join_master(*torch.ops.fulgurite.split_master(values))
        assert torch.equal(joined.view(torch.int32), values.view(torch.int32))
