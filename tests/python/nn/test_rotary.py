"""Rotary tables against their formulas, one angle at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fulgurite.nn.attention
import fulgurite.nn.functional as F
from fulgurite.nn import (
    rotary_table,
    rotary_table_2d,
    rotary_table_interpolated,
    rotary_table_ntk,
    rotary_table_yarn,
)

Table = tuple[Tensor, Tensor]


def assert_table(table: Table, angles: list[list[float]], amplitude: float = 1.0) -> None:
    for got, function in zip(table, (math.cos, math.sin), strict=True):
        expected = [[amplitude * function(angle) for angle in row] for row in angles]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("base", [10000.0, 800000.0])
def test_plain(start: int, base: float) -> None:
    angles = [[n * base ** (-2 * i / 6) for i in range(3)] for n in range(start, start + 5)]
    assert_table(rotary_table(5, 6, base, start), angles)


def test_interpolated() -> None:
    angles = [[n / 3 * 10000 ** (-2 * i / 8) for i in range(4)] for n in range(2, 9)]
    assert_table(rotary_table_interpolated(7, 8, 3.0, start=2), angles)


def test_ntk() -> None:
    base = 10000.0 * 5.0 ** (8 / 6)
    angles = [[n * base ** (-2 * i / 8) for i in range(4)] for n in range(2, 9)]
    assert_table(rotary_table_ntk(7, 8, 5.0, start=2), angles)


@pytest.mark.parametrize("factor", [2.0, 8.0, 10.0])
def test_ntk_interpolates_the_lowest_frequency_and_keeps_the_highest(factor: float) -> None:
    step = int(factor)
    for got, plain in zip(
        rotary_table_ntk(20 * step, 64, factor), rotary_table(20 * step, 64), strict=True
    ):
        assert torch.equal(got[:, 0], plain[:, 0])
        torch.testing.assert_close(got[::step, -1], plain[:20, -1], rtol=0.0, atol=6e-8)
        assert not torch.equal(got[:, 1:-1], plain[:, 1:-1])


def yarn_angles(
    dim: int, factor: float, trained: int, base: float, fast: float, slow: float, truncate: bool
) -> list[list[float]]:
    """The angles of positions 0 to 9: where a dim's rotations lie between fast and slow, a mix."""

    def dim_of(rotations: float) -> float:
        # base^(-2i/dim)·trained = 2π·rotations, solved for i
        return dim / 2 * math.log(trained / (2 * math.pi * rotations), base)

    low, high = dim_of(fast), dim_of(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    rows = []
    for n in range(10):
        row = []
        for i in range(dim // 2):
            mix = min(max((i - low) / (high - low), 0), 1)
            frequency = base ** (-2 * i / dim)
            row.append(n * (mix * frequency / factor + (1 - mix) * frequency))
        rows.append(row)
    return rows


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("dim", "factor", "trained", "base", "fast", "slow"),
    [
        (128, 16.0, 4096, 10000.0, 32.0, 1.0),
        (64, 40.0, 4096, 10000.0, 32.0, 1.0),
        (64, 32.0, 4096, 150000.0, 32.0, 1.0),
        (32, 4.0, 64, 10000.0, 32.0, 1.0),
        (32, 4.0, 2048, 10000.0, 8.0, 2.0),
    ],
)
def test_yarn(
    dim: int, factor: float, trained: int, base: float, fast: float, slow: float, truncate: bool
) -> None:
    table = rotary_table_yarn(
        10, dim, factor, trained, base, fast=fast, slow=slow, truncate=truncate
    )
    angles = yarn_angles(dim, factor, trained, base, fast, slow, truncate)
    assert_table(table, angles, amplitude=0.1 * math.log(factor) + 1)
    unscaled = rotary_table_yarn(
        10, dim, factor, trained, base,
        fast=fast, slow=slow, truncate=truncate, attention_factor=1.0,
    )  # fmt: skip
    assert_table(unscaled, angles)


def test_yarn_keeps_fast_dims_and_interpolates_slow_ones() -> None:
    dim, trained = 128, 4096
    yarn = rotary_table_yarn(50, dim, 8.0, trained, attention_factor=1.0)
    plain, slowed = rotary_table(50, dim), rotary_table_interpolated(50, dim, 8.0)
    rotations = [trained / (2 * math.pi) * 10000.0 ** (-2 * i / dim) for i in range(dim // 2)]
    fast = [i for i, turns in enumerate(rotations) if turns > 40]
    slow = [i for i, turns in enumerate(rotations) if turns < 0.8]
    assert fast
    assert slow
    for got, kept, divided in zip(yarn, plain, slowed, strict=True):
        assert torch.equal(got[:, fast], kept[:, fast])
        assert torch.equal(got[:, slow], divided[:, slow])


@pytest.mark.parametrize(("trained", "like"), [(1, "slowed"), (10**9, "plain")])
def test_yarn_where_all_dims_are_slow_or_fast(trained: int, like: str) -> None:
    """All dims but the one at the ramp's end."""
    cos, _ = rotary_table_yarn(20, 16, 4.0, trained, attention_factor=1.0)
    table = rotary_table(20, 16) if like == "plain" else rotary_table_interpolated(20, 16, 4.0)
    assert torch.equal(cos[:, 1:], table[0][:, 1:])


EXTENDED: list[Callable[..., Table]] = [
    rotary_table_interpolated,
    rotary_table_ntk,
    lambda *args, **options: rotary_table_yarn(*args, trained_length=64, **options),
]


@pytest.mark.parametrize("extended", EXTENDED)
def test_a_factor_of_one_changes_nothing(extended: Callable[..., Table]) -> None:
    for got, plain in zip(extended(30, 16, 1.0), rotary_table(30, 16), strict=True):
        assert torch.equal(got, plain)


@pytest.mark.parametrize(
    "extended", [lambda length, dim, factor, **o: rotary_table(length, dim, **o), *EXTENDED]
)
def test_tables_continue(extended: Callable[..., Table]) -> None:
    whole, rest = extended(7, 8, 3.0), extended(3, 8, 3.0, start=4)
    for table, tail in zip(whole, rest, strict=True):
        assert torch.equal(table[4:], tail)


def test_far_positions_are_exact() -> None:
    """In float32 the angle of a position of 10⁶ is off by 0.03 already."""
    cos, sin = rotary_table(1, 64, start=1_000_003)
    for i in range(32):
        angle = 1_000_003 * 10000.0 ** (-2 * i / 64)
        assert abs(float(cos[0, i]) - math.cos(angle)) < 1e-7
        assert abs(float(sin[0, i]) - math.sin(angle)) < 1e-7


def test_2d_turns_columns_and_rows() -> None:
    """The rotation written with complex numbers, patch by patch: column first, then row."""
    torch.manual_seed(0)
    height, width, dim = 3, 5, 8
    x = torch.randn(2, height * width, dim)
    turned = F.rope(x, *rotary_table_2d(height, width, dim), interleaved=True)
    for row in range(height):
        for column in range(width):
            n = row * width + column
            for i in range(dim // 4):
                frequency = 10000.0 ** (-4 * i / dim)
                for pair, position in ((2 * i, column), (2 * i + 1, row)):
                    for b in range(2):
                        a, c = x[b, n, 2 * pair : 2 * pair + 2].tolist()
                        angle = position * frequency
                        expected = complex(a, c) * complex(math.cos(angle), math.sin(angle))
                        got = complex(*turned[b, n, 2 * pair : 2 * pair + 2].tolist())
                        assert abs(got - expected) < 1e-5


def test_2d_scores_depend_on_the_offset_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 16, dtype=torch.float64)
    cos, sin = (table.double() for table in rotary_table_2d(6, 7, 16))
    query, key = (F.rope(x.expand(1, 42, 16), cos, sin, interleaved=True)[0] for x in (query, key))
    score = (query @ key.T).view(6, 7, 6, 7)
    moved = score[1:, 2:, 1:, 2:]
    torch.testing.assert_close(moved, score[:-1, :-2, :-1, :-2], rtol=1e-5, atol=1e-5)


def test_empty() -> None:
    assert rotary_table(0, 4)[0].shape == (0, 2)
    assert rotary_table_2d(0, 3, 8)[1].shape == (0, 4)


def test_importable_from_where_it_was() -> None:
    assert fulgurite.nn.attention.rotary_table is rotary_table


def test_errors() -> None:
    with pytest.raises(ValueError, match="rotary_table: expected an even, positive dim, got 3"):
        rotary_table(4, 3)
    with pytest.raises(ValueError, match="rotary_table_interpolated: expected an even"):
        rotary_table_interpolated(4, 0, 2.0)
    with pytest.raises(ValueError, match=r"factor of at least 1 and finite, got 0\.5"):
        rotary_table_interpolated(4, 8, 0.5)
    with pytest.raises(ValueError, match="rotary_table_ntk: expected dim of at least 4, got 2"):
        rotary_table_ntk(4, 2, 2.0)
    name = "rotary_table_yarn"
    with pytest.raises(ValueError, match=f"{name}: expected trained_length of at least 1, got 0"):
        rotary_table_yarn(4, 8, 2.0, 0)
    with pytest.raises(ValueError, match=rf"{name}: expected base above 1 and finite, got 1\.0"):
        rotary_table_yarn(4, 8, 2.0, 16, base=1.0)
    with pytest.raises(ValueError, match=rf"{name}: expected fast above 2\.0 and finite, got 1\.0"):
        rotary_table_yarn(4, 8, 2.0, 16, fast=1.0, slow=2.0)
    with pytest.raises(ValueError, match="rotary_table_2d: expected dim a positive multiple of 4"):
        rotary_table_2d(2, 2, 6)
