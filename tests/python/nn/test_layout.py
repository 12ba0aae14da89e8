"""Sparse Transformer patterns against their predicates, pair by pair, and through attention."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F
from fulgurite.nn import (
    fixed_layout,
    fixed_mask,
    local_layout,
    local_mask,
    strided_layout,
    strided_mask,
)


def predicate(pattern: str, i: int, j: int, stride: int, width: int = 0, slot: int = 0) -> bool:
    if j > i:
        return False
    if pattern == "local":
        return i - j < stride
    if pattern == "strided":
        return (i - j) % stride == 0
    column = j % stride in range(stride - (slot + 1) * width, stride - slot * width)
    return i // stride == j // stride or column


def table(pattern: str, length: int, stride: int, width: int = 0, slot: int = 0) -> Tensor:
    rows = [
        [predicate(pattern, i, j, stride, width, slot) for j in range(length)]
        for i in range(length)
    ]
    return torch.tensor(rows, dtype=torch.bool).view(length, length)


def blocks_of(mask: Tensor, block_size: int) -> Tensor:
    """Blocks (H, ⌈N/bs⌉, ⌈N/bs⌉) of a mask (H, N, N) with a pair in them, one block at a time."""
    count = -(-mask.shape[-1] // block_size)
    layout = torch.zeros(mask.shape[0], count, count, dtype=torch.bool)
    for row in range(count):
        for column in range(count):
            rows = slice(row * block_size, (row + 1) * block_size)
            columns = slice(column * block_size, (column + 1) * block_size)
            layout[:, row, column] = mask[:, rows, columns].any(-1).any(-1)
    return layout


SIZES = [(24, 8), (24, 4), (23, 5), (17, 1), (9, 20), (1, 3), (0, 3)]


@pytest.mark.parametrize(("length", "stride"), SIZES)
def test_masks(length: int, stride: int) -> None:
    assert torch.equal(local_mask(length, stride)[0], table("local", length, stride))
    assert torch.equal(strided_mask(length, stride)[0], table("strided", length, stride))


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 40])
@pytest.mark.parametrize(("length", "stride"), SIZES)
def test_layouts(length: int, stride: int, block_size: int) -> None:
    for mask, layout in ((local_mask, local_layout), (strided_mask, strided_layout)):
        expected = blocks_of(mask(length, stride), block_size)
        assert torch.equal(layout(length, stride, block_size), expected)


@pytest.mark.parametrize(
    ("length", "stride", "width", "heads", "slots"),
    [
        (24, 8, 2, 1, 1),
        (24, 8, 2, 6, 4),
        (23, 5, 1, 3, 2),
        (23, 5, 2, 2, 2),
        (12, 4, 0, 1, 1),
        (12, 4, 4, 1, 1),
        (9, 20, 3, 2, 3),
        (0, 4, 1, 2, 2),
    ],
)
def test_fixed(length: int, stride: int, width: int, heads: int, slots: int) -> None:
    mask = fixed_mask(length, stride, width, heads, slots)
    expected = [table("fixed", length, stride, width, head % slots) for head in range(heads)]
    assert torch.equal(mask, torch.stack(expected))
    for block_size in (1, 2, 3, 4, 7, 40):
        layout = fixed_layout(length, stride, block_size, width, heads, slots)
        assert torch.equal(layout, blocks_of(mask, block_size))


def inputs(length: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 4, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def assert_is_dense(run: Callable[..., Tensor], mask: Tensor) -> None:
    """Output and gradients of ``run(query, key, value)`` are those under a dense mask."""
    tensors = inputs(mask.shape[-1])
    query, key, value = tensors
    scores = query @ key.transpose(-1, -2) * 8**-0.5
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value
    out = run(query, key, value)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    incoming = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, tensors, incoming),
        torch.autograd.grad(expected, tensors, incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [64, 61])
def test_fixed_layout_in_attention_is_exact(length: int) -> None:
    mask = fixed_mask(length, 16, 4, num_heads=4, num_slots=3)
    layout = fixed_layout(length, 16, 4, 4, num_heads=4, num_slots=3)
    assert_is_dense(
        lambda q, k, v: F.attention(q, k, v, block_layout=layout, block_size=4, causal=True), mask
    )


def test_local_layout_in_attention() -> None:
    layout = local_layout(50, 12, 8)
    assert_is_dense(
        lambda q, k, v: F.attention(
            q, k, v, block_layout=layout, block_size=8, causal=True, window_left=11
        ),
        local_mask(50, 12),
    )


def test_strided_layout_in_attention_with_its_mask() -> None:
    mask, layout = strided_mask(50, 20), strided_layout(50, 20, 8)
    assert layout.sum() < torch.ones_like(layout[0]).tril().sum()
    assert_is_dense(
        lambda q, k, v: F.attention(q, k, v, mask=mask, block_layout=layout, block_size=8), mask
    )


def test_strided_is_chunks_of_reordered_positions() -> None:
    length, stride = 48, 6

    def reordered(x: Tensor) -> Tensor:
        return x.unflatten(2, (length // stride, stride)).transpose(2, 3).flatten(2, 3)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = F.attention(
            reordered(query),
            reordered(key),
            reordered(value),
            causal=True,
            chunk_size=length // stride,
        )
        return out.unflatten(2, (stride, length // stride)).transpose(2, 3).flatten(2, 3)

    assert_is_dense(run, strided_mask(length, stride))


def test_unions() -> None:
    mask = local_mask(40, 8) | strided_mask(40, 8)
    layout = local_layout(40, 8, 4) | strided_layout(40, 8, 4)
    assert torch.equal(layout, blocks_of(mask, 4))
    assert_is_dense(
        lambda q, k, v: F.attention(q, k, v, mask=mask, block_layout=layout, block_size=4), mask
    )


def test_errors() -> None:
    for call in (local_mask, strided_mask):
        with pytest.raises(ValueError, match="mask: expected stride of at least 1, got 0"):
            call(4, 0)
        with pytest.raises(ValueError, match="mask: expected length of at least 0, got -1"):
            call(-1, 2)
    for call in (local_layout, strided_layout):
        with pytest.raises(ValueError, match="layout: expected block_size of at least 1, got 0"):
            call(4, 2, 0)
    with pytest.raises(ValueError, match=r"fixed_mask: .* fit into a stride of 4, got 3 of 2"):
        fixed_mask(8, 4, 2, num_slots=3)
    with pytest.raises(ValueError, match="fixed_layout: expected width of at least 0, got -1"):
        fixed_layout(8, 4, 2, -1)
    with pytest.raises(ValueError, match="fixed_mask: expected num_heads of at least 1, got 0"):
        fixed_mask(8, 4, 2, num_heads=0)
