"""The Sparse Transformer's three patterns, as exact masks and as layouts of blocks.

Child et al., https://arxiv.org/abs/1904.10509, https://github.com/openai/sparse_attention.
Query i keeps key j ≤ i where, with stride l, width c and the head's slot s,

========  =====================================================
local     i − j < l
strided   (i − j) mod l = 0
fixed     ⌊i/l⌋ = ⌊j/l⌋  or  l − (s + 1)·c ≤ j mod l < l − s·c
========  =====================================================

A ``*_mask`` is this predicate, pair by pair. A ``*_layout`` keeps every block that holds a kept
pair: it hides nothing that the predicate keeps, but may keep more. What makes it exact:

========  ======================================================================================
local     ``causal=True, window_left=l - 1``, which says it all without a layout
strided   ``strided_mask`` beside the layout; or positions reordered residue by residue, then
          ``causal=True, chunk_size=length // l`` (docs/howto/positions.md)
fixed     ``causal=True``, if the block size divides stride and width; else ``fixed_mask``
========  ======================================================================================

The union of two patterns is ``|`` of their masks, or of their layouts.
"""

import torch
from torch import Tensor

from fulgurite._numbers import integer


def _check(name: str, length: int, stride: int, block_size: int = 1) -> None:
    integer(name, "length", length, 0)
    integer(name, "stride", stride, 1)
    integer(name, "block_size", block_size, 1)


def _check_columns(name: str, stride: int, width: int, num_heads: int, num_slots: int) -> None:
    integer(name, "num_heads", num_heads, 1)
    width, num_slots = integer(name, "width", width, 0), integer(name, "num_slots", num_slots, 1)
    if width * num_slots > stride:
        raise ValueError(
            f"{name}: expected num_slots columns of a width that fit into a stride of {stride}, "
            f"got {num_slots} of {width}"
        )


def _pairs(length: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Positions of queries (N, 1) and keys (N)."""
    position = torch.arange(length, dtype=torch.int64, device=device)
    return position[:, None], position


def _blocks(
    length: int, block_size: int, device: torch.device | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last query (blocks, 1) and key (blocks) of every block."""
    first = torch.arange(0, length, block_size, dtype=torch.int64, device=device)
    last = (first + (block_size - 1)).clamp(max=length - 1)
    return first[:, None], last[:, None], first, last


def _column_start(stride: int, width: int, num_heads: int, num_slots: int, like: Tensor) -> Tensor:
    """First kept residue of each head, (H, 1, 1)."""
    slot = torch.arange(num_heads, dtype=torch.int64, device=like.device) % num_slots
    return (stride - (slot + 1) * width)[:, None, None]


def local_mask(length: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Causal window: each query keeps the ``stride`` keys up to itself.

    Attention needs no mask for it: ``causal=True, window_left=stride - 1``. This is for unions.

    Args:
        length: queries and keys N.
        stride: l.
        device: where the mask is made.

    Returns:
        (1, N, N), bool, True keeps; broadcasts to (B, H, N, N).

    Raises:
        ValueError: ``length`` is negative or ``stride`` below 1.

    >>> local_mask(4, 2)[0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    _check("local_mask", length, stride)
    i, j = _pairs(length, device)
    return ((j <= i) & (i - j < stride)).unsqueeze(0)


def strided_mask(length: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Each query keeps itself and every ``stride``-th key before itself.

    Args, returns and errors as in :func:`local_mask`.

    >>> strided_mask(4, 2)[0].int()
    tensor([[1, 0, 0, 0],
            [0, 1, 0, 0],
            [1, 0, 1, 0],
            [0, 1, 0, 1]], dtype=torch.int32)
    """
    _check("strided_mask", length, stride)
    i, j = _pairs(length, device)
    return ((j <= i) & ((i - j) % stride == 0)).unsqueeze(0)


def fixed_mask(
    length: int,
    stride: int,
    width: int,
    num_heads: int = 1,
    num_slots: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Each query keeps its own chunk up to itself, and ``width`` columns of every chunk before.

    Args:
        length: queries and keys N.
        stride: length l of a chunk.
        width: columns c of a chunk that later chunks see.
        num_heads: H; 1 gives one mask for all heads.
        num_slots: different sets of columns; head h has those of slot h mod num_slots, the last
            columns of the chunk being slot 0.
        device: where the mask is made.

    Returns:
        (H, N, N), bool, True keeps; broadcasts to (B, H, N, N).

    Raises:
        ValueError: ``length`` is negative, ``stride`` or ``num_heads`` below 1, or the slots do not
            fit into the stride.

    >>> fixed_mask(4, 2, width=1)[0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 1, 1, 1]], dtype=torch.int32)
    """
    _check("fixed_mask", length, stride)
    _check_columns("fixed_mask", stride, width, num_heads, num_slots)
    i, j = _pairs(length, device)
    start = _column_start(stride, width, num_heads, num_slots, j)  # (H, 1, 1)
    residue = j % stride
    column = (start <= residue) & (residue < start + width)
    return (j <= i) & ((i // stride == j // stride) | column)


def local_layout(
    length: int, stride: int, block_size: int, device: torch.device | None = None
) -> Tensor:
    """Blocks that hold a pair of :func:`local_mask`.

    Args:
        length: queries and keys N.
        stride: l.
        block_size: of the layout; pass it to attention too.
        device: where the layout is made.

    Returns:
        (1, ⌈N/block_size⌉, ⌈N/block_size⌉), bool: attention's ``block_layout``.

    Raises:
        ValueError: ``length`` is negative; ``stride`` or ``block_size`` is below 1.

    >>> local_layout(6, stride=2, block_size=2)[0].int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    _check("local_layout", length, stride, block_size)
    first_i, _, first_j, last_j = _blocks(length, block_size, device)
    return ((first_j <= first_i) & (first_i - last_j < stride)).unsqueeze(0)


def strided_layout(
    length: int, stride: int, block_size: int, device: torch.device | None = None
) -> Tensor:
    """Blocks that hold a pair of :func:`strided_mask`: all causal ones if 2·block_size > stride.

    A block has pairs of 2·block_size − 1 distances, and is off if none of them is a multiple of the
    stride. Args, returns and errors as in :func:`local_layout`.

    >>> strided_layout(10, stride=6, block_size=2)[0].int()
    tensor([[1, 0, 0, 0, 0],
            [0, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [1, 0, 0, 1, 0],
            [0, 1, 0, 0, 1]], dtype=torch.int32)
    """
    _check("strided_layout", length, stride, block_size)
    first_i, last_i, first_j, last_j = _blocks(length, block_size, device)
    nearest, farthest = (first_i - last_j).clamp(min=0), last_i - first_j
    multiple = (nearest + (stride - 1)) // stride * stride  # the first one in reach
    return (multiple <= farthest).unsqueeze(0)


def fixed_layout(
    length: int,
    stride: int,
    block_size: int,
    width: int,
    num_heads: int = 1,
    num_slots: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Blocks that hold a pair of :func:`fixed_mask`.

    Args:
        length, stride, width, num_heads, num_slots, device: as in :func:`fixed_mask`.
        block_size: of the layout; pass it to attention too.

    Returns:
        (H, ⌈N/block_size⌉, ⌈N/block_size⌉), bool: attention's ``block_layout``. It is exact with
        ``causal=True`` if block_size divides stride and width.

    Raises:
        ValueError: as in :func:`fixed_mask`; ``block_size`` is below 1.

    >>> fixed_layout(8, stride=4, block_size=2, width=2)[0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 1, 1, 1]], dtype=torch.int32)
    """
    _check("fixed_layout", length, stride, block_size)
    _check_columns("fixed_layout", stride, width, num_heads, num_slots)
    first_i, last_i, first_j, last_j = _blocks(length, block_size, device)
    start = _column_start(stride, width, num_heads, num_slots, first_j)  # (H, 1, 1)

    def columns_before(key: Tensor) -> Tensor:
        return key // stride * width + (key % stride - start).clamp(min=0, max=width)

    causal = first_j <= first_i
    end = torch.minimum(last_j, last_i) + 1  # keys from here on are after every query of the block
    has_column = columns_before(end) > columns_before(first_j)
    # The nearest pair of a block below the diagonal is its first query and last key.
    same_chunk = first_i // stride <= torch.minimum(last_j, first_i) // stride
    return causal & (same_chunk | has_column)
