"""Packed sequences against the same sequences alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from common_checks import Results, assert_same_bits


def assert_packed_as_alone(lengths: list[int], run: Callable[..., Results]) -> None:
    """A pack has the bits of its sequences alone, and zeros at the positions that are nobody's.

    ``run(positions, sequences, **kwargs)`` calls the operator on slices of its inputs. Of its
    results, those with "state" in their names have sequences in front, others positions at the end.
    """
    total = sum(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    packed = run(slice(None), slice(None), cu_seqlens=offsets.int())
    alone = [
        run(slice(int(offsets[s]), int(offsets[s + 1])), slice(s, s + 1))
        for s in range(len(lengths))
    ]
    for name, result in packed.items():
        along = 0 if "state" in name else -1
        expected = torch.cat([one[name] for one in alone], along)
        if along == -1:
            assert result[..., total:].count_nonzero() == 0
            result = result[..., :total]
        assert_same_bits({name: result}, {name: expected})
