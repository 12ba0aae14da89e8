"""Dropout of a part of the batch or of the heads is that of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from common_checks import DEVICE, Results, assert_same_bits, forward_backward
from fulgurite.testing.references.attention import dropout_keep
from fulgurite.testing.samples.attention import qkv
from second_derivatives import cotangents_for, noise_like, second_derivatives

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
attention_op = torch.ops.fulgurite.attention
keep_op = torch.ops.fulgurite._attention_dropout_keep
SEED, OFFSET, P = 987654321012345, -(1 << 50) + 3, 0.4
B, H, N, M, D = 4, 8, 20, 37, 8


def philox(first_batch: int = 0, first_head: int = 0) -> Tensor:
    return torch.tensor([SEED, OFFSET, first_batch, first_head])


def case(dtype: torch.dtype) -> tuple[Results, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = qkv(generator, dtype, DEVICE, B=B, Hq=H, N=N, M=M, D=D)
    out = torch.randn(B, H, N, D, generator=generator)
    inputs = dict(zip(("query", "key", "value"), tensors, strict=True))
    return inputs, (out, out[..., 0].contiguous())


def part(tensors: Results, batch: slice, heads: slice) -> Results:
    return {label: tensor[batch, heads] for label, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_drops_what_the_whole_drops(dtype: torch.dtype, isa: str) -> None:
    inputs, (grad_out, grad_lse) = case(dtype)

    def run(inputs: Results, batch: slice, heads: slice) -> Results:
        start = philox(batch.start or 0, heads.start or 0)
        cotangents = (grad_out[batch, heads], grad_lse[batch, heads])
        return forward_backward(attention_op, inputs, cotangents, dropout_p=P, philox=start)

    everything = slice(None), slice(None)
    whole = run(inputs, *everything)
    for batch, heads in [(slice(None), slice(4, 8)), (slice(1, 3), slice(None)),
                         (slice(3, 4), slice(2, 7))]:  # fmt: skip
        own = run(part(inputs, batch, heads), batch, heads)
        assert_same_bits(own, part(whole, batch, heads))
    short = forward_backward(
        attention_op, inputs, (grad_out, grad_lse), dropout_p=P, philox=philox()[:2]
    )
    assert_same_bits(short, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_second_derivatives_of_a_part(dtype: torch.dtype) -> None:
    inputs, _ = case(dtype)
    whole = second_of(inputs, philox())
    heads = slice(5, 8)
    own = second_of(part(inputs, slice(None), heads), philox(0, 5), heads)
    for label, grad in own.items():
        torch.testing.assert_close(grad, whole[label][:, heads])


def second_of(inputs: Results, start: Tensor, heads: slice = slice(None)) -> Results:
    kwargs = {"dropout_p": P, "philox": start}
    full, _ = case(inputs["query"].dtype)
    cotangents, directions = cotangents_for(full, kwargs), noise_like(full, seed=2)
    return second_derivatives(
        attention_op,
        inputs,
        {label: t[:, heads] for label, t in cotangents.items()},
        {label: t[:, heads] for label, t in directions.items()},
        kwargs,
    )


def packed(inputs: Results, sequences: range, start: Tensor, isa: str) -> Tensor:
    """out (sequences, H, N, D) of some batch entries as packed sequences."""
    rows = [inputs[k][sequences.start : sequences.stop].transpose(1, 2).flatten(0, 1)
            for k in ("query", "key", "value")]  # fmt: skip
    offsets = [torch.arange(len(sequences) + 1) * size for size in (N, M)]
    out, _ = torch.ops.fulgurite.attention_varlen(*rows, *offsets, dropout_p=P, philox=start)
    return out.unflatten(0, (len(sequences), N)).transpose(1, 2)


def test_packed_sequences_drop_what_batch_entries_drop(isa: str) -> None:
    inputs, _ = case(torch.float32)
    dense, _ = attention_op(*inputs.values(), dropout_p=P, philox=philox())
    assert torch.equal(packed(inputs, range(B), philox(), isa), dense)
    assert torch.equal(packed(inputs, range(2, B), philox(2), isa), dense[2:])


def test_every_index_and_word_counts() -> None:
    """Keep bits change with each of seed, offset (both halves), b, h, i and j."""
    tile = (1, 2, 2, 3, 5, 6, 50)  # b, h, heads, i, rows, j, keys
    kept = keep_op(philox(), P, *tile)
    assert kept.shape == (2, 5, 50)
    assert kept.dtype == torch.bool
    whole = dropout_keep((2, 4, 8, 56), P, philox())
    assert torch.equal(kept, whole[1, 2:4, 3:8, 6:56])
    assert torch.equal(kept, keep_op(philox(1, 2), P, 0, 0, *tile[2:]))
    assert torch.equal(kept, keep_op(philox()[:2], P, *tile))
    for position, change in [(0, 1), (0, 1 << 40), (1, 1), (1, 1 << 40), (2, 1), (3, 2)]:
        other = philox()
        other[position] += change
        assert not torch.equal(kept, keep_op(other, P, *tile)), (position, change)
    seen = {tuple(row.tolist()) for row in whole.flatten(0, 2)}
    assert len(seen) == 2 * 4 * 8  # no two rows share their bits
    assert abs(whole.double().mean().item() - (1 - P)) < 0.02


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"philox": philox().int()}, TypeError, "philox of dtype int64"),
        ({"philox": philox()[:3]}, RuntimeError, r"philox of shape \[2\] or \[4\], got \[3\]"),
        ({"philox": philox(-1)}, RuntimeError, "the first batch index in philox from 0"),
        ({"philox": philox(0, 1 << 31)}, RuntimeError, "the first head in philox from 0"),
        ({"p": 1.0}, ValueError, "dropout_p"),
        ({"rows": -1}, ValueError, "rows"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    given = {"philox": philox(), "p": P, "rows": 2} | change
    with pytest.raises(error, match=f"fulgurite::_attention_dropout_keep: .*{match}"):
        keep_op(given["philox"], given["p"], 0, 0, 1, 0, given["rows"], 0, 4)


def test_opcheck() -> None:
    torch.library.opcheck(keep_op, (philox(), P, 0, 0, 2, 0, 3, 0, 5))
