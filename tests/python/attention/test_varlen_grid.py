"""Packed sequences of the lengths, heads and widths that flash-attention's varlen tests take.

A normal run takes a sample in which every value occurs; ``FULGURITE_FULL=1`` takes every triple of
width, lengths and what is hidden, long sequences too.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from attention.grids import DTYPES, assert_case, assert_errors, rows
from common_checks import DEVICE, FULL
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.samples.attention_cache import offsets

VARLEN = OPERATORS["attention_varlen"]
WIDTHS = [(32, 32), (40, 40), (59, 59), (64, 64), (80, 80), (96, 96), (111, 111), (128, 128),
          (160, 160), (192, 128), (192, 192), (224, 224), (256, 256)]  # fmt: skip
# The longest query and key sequence of a packing. Equal ones: a sequence attends to itself.
LONGEST = [(1, 147), (113, 203), (128, 217), (113, 211), (108, 256), (97, 97), (211, 113),
           (160, 160), (256, 130)]  # fmt: skip
LONG = [(256, 512), (512, 256), (384, 384)]
LONGER = [(1024, 1024), (1023, 1024), (1024, 1023), (1, 2048)]
FILLS = ["whole", "nearly", "third", "empty"]
HEADS = [(3, 3), (4, 1), (6, 2)]
HIDING: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "causal_top_left": {"causal": True, "align": "top_left"},
    "window": {"window_left": 70, "window_right": 33},
    "causal_window": {"causal": True, "window_left": 50},
    "window_ahead": {"window_left": 0, "window_right": 90, "align": "top_left"},
}
SCORES = ["plain", "plain", "softcap", "alibi", "dropout"]
DRAWN = (FILLS, SCORES)


class Case(NamedTuple):
    """D query/key width, Dv value width; ``longest`` bounds the lengths of both sides."""

    widths: tuple[int, int]
    longest: tuple[int, int]
    hiding: str
    heads: tuple[int, int]
    dtype: torch.dtype
    fill: str
    scores: str

    def sample(self, seed: int) -> Sample:
        """As many sequences as are worth about 600 keys, and two rows of nobody at the end."""
        generator = torch.Generator().manual_seed(seed)
        pairs = self.lengths(random.Random(seed))
        starts = [offsets(DEVICE, torch.int32, *(pair[side] for pair in pairs)) for side in (0, 1)]
        (Hq, Hkv), (D, Dv) = self.heads, self.widths
        Tq, Tk = (int(s[-1]) + 2 for s in starts)
        shapes = ((Tq, Hq, D), (Tk, Hkv, D), (Tk, Hkv, Dv))
        tensors = [torch.randn(s, generator=generator).to(self.dtype) for s in shapes]
        kwargs = HIDING[self.hiding] | self.score_arguments(len(pairs), generator)
        return Sample(str(self), (*tensors, *starts), kwargs)

    def lengths(self, draw: random.Random) -> list[tuple[int, int]]:
        """Query and key lengths of every sequence."""

        def length(most: int) -> int:
            if self.fill == "empty" and draw.random() < 0.35:
                return 0
            least = {"whole": most, "nearly": most - 20, "third": most // 3, "empty": 0}[self.fill]
            return draw.randint(max(1, least), most)

        count = min(5, max(2, 600 // max(self.longest)))
        pairs = [(length(self.longest[0]), length(self.longest[1])) for _ in range(count)]
        if self.longest[0] == self.longest[1]:
            return [(n, n) for n, _ in pairs]
        return pairs

    def score_arguments(self, sequences: int, generator: torch.Generator) -> dict[str, Any]:
        if self.scores == "softcap":
            return {"softcap": 15.0}
        if self.scores == "alibi":
            slopes: Tensor = torch.rand(sequences, self.heads[0], generator=generator) * 0.3
            return {"alibi_slopes": slopes}
        if self.scores == "dropout":
            return {"dropout_p": 0.17, "philox": torch.tensor([1234567, 89])}
        return {}

    def __str__(self) -> str:
        (D, Dv), (N, M), hiding, (Hq, Hkv), dtype, fill, scores = self
        return f"D{D},{Dv}-N{N}-M{M}-{hiding}-H{Hq},{Hkv}-{str(dtype)[6:]}-{fill}-{scores}"


def grid() -> list[Case]:
    """In a full run the dimensions that are no part of the product are spread evenly over it."""
    rest = (HEADS, DTYPES, *DRAWN)
    if not FULL:
        return [Case(*row) for row in rows(18, WIDTHS, LONGEST, list(HIDING), *rest)]
    cells = list(product(WIDTHS, LONGEST, HIDING))
    long = rows(len(WIDTHS) * len(LONG), WIDTHS, LONG, list(HIDING), *rest)
    longer = rows(len(WIDTHS), WIDTHS, LONGER, list(HIDING), *rest)
    mixed = rows(len(cells), *rest)
    return [*(Case(*cell, *row) for cell, row in zip(cells, mixed, strict=True)),
            *(Case(*row) for row in long + longer)]  # fmt: skip


@pytest.mark.parametrize("case", grid(), ids=str)
def test_grid(case: Case, isa: str) -> None:
    assert_case(VARLEN, case, magnitude=case.widths[1] ** 0.5)  # of dO·v


def accuracy_cases() -> list[Case]:
    """Classes of shapes for the rule over many seeds, of which each draws its own lengths."""
    hiding, heads = ["all", "causal", "window", "causal_window"], [(2, 1), (2, 2)]
    if FULL:
        widths, longest = [(32, 32), (64, 64), (111, 111), (192, 128)], [(96, 96), (113, 203)]
        return [Case(*row) for row in rows(18, widths, longest, hiding, heads, DTYPES, *DRAWN)]
    widths, longest = [(64, 64), (40, 40), (32, 32)], [(64, 64), (33, 70), (96, 96)]
    return [Case(*row) for row in rows(3, widths, longest, hiding, heads, DTYPES, *DRAWN)]


@pytest.mark.parametrize("case", accuracy_cases(), ids=str)
def test_error_is_no_larger_than_naive(case: Case, isa: str) -> None:
    assert_errors(VARLEN, case)
