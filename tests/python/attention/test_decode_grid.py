"""Decoding over caches of the lengths, pages and heads that flash-attention's cache tests take.

A normal run takes a sample in which every value occurs; ``FULGURITE_FULL=1`` takes every
combination of queries, cache length, page and what is hidden. There is no gradient.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from attention.grids import DTYPES, assert_case, assert_errors, rows
from common_checks import FULL
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.samples.attention_cache import paged

DECODE = OPERATORS["attention_decode"]
QUERIES = [1, 3, 64, 128]
LONGEST = [128, 339, 799, 1024, 2048, 3131]  # 3131 and 799: no multiple of a page or of a split
PAGES = [0, 16, 256, 512]  # keys of a page; 0: the cache is contiguous
HIDING: dict[str, dict[str, Any]] = {
    "all": {"causal": False},
    "causal": {"causal": True},
    "window": {"causal": False, "window_left": 300},
    "causal_window": {"causal": True, "window_left": 100},
    "window_sinks": {"causal": True, "window_left": 33, "sink_tokens": 4},
}
WIDTHS = [(32, 32), (59, 59), (64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256),
          (576, 512)]  # fmt: skip
HEADS = [(3, 3), (4, 1), (6, 2), (8, 1)]
SCORES = ["plain", "plain", "softcap", "alibi", "sink", "left_padding", "mask"]
LAYOUTS = ["heads_first", "heads_last"]
RESTS = ["noise", "nan"]  # what a cache holds past its length


class Case(NamedTuple):
    """D query/key width, Dv value width; ``longest`` is the length of the fullest cache."""

    queries: int
    longest: int
    page: int
    hiding: str
    widths: tuple[int, int]
    heads: tuple[int, int]
    dtype: torch.dtype
    scores: str
    layout: str
    rest: str

    def sample(self, seed: int) -> Sample:
        """Four sequences: the fullest, any length, fewer keys than queries, and an empty one."""
        generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
        lens = [self.longest, draw.randint(1, self.longest), draw.randint(1, self.queries), 0]
        draw.shuffle(lens)
        (Hq, Hkv), (D, Dv) = self.heads, self.widths
        query = torch.randn(4, Hq, self.queries, D, generator=generator).to(self.dtype)
        step = self.page or 7
        width = -(-self.longest // step) * step
        caches = [torch.randn(4, Hkv, width, d, generator=generator) for d in (D, Dv)]
        for cache, (b, length) in product(caches, enumerate(lens)):
            if self.rest == "nan":
                cache[b, :, length:] = torch.nan
        caches = [cache.to(self.dtype) for cache in caches]
        kwargs = HIDING[self.hiding] | self.score_arguments(width, lens, generator)
        if self.page:
            caches, kwargs["page_table"] = self.as_pages(caches, lens, seed)
        if self.layout == "heads_last":  # (·, M, Hkv, D) in memory
            caches = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in caches]
        lens_dtype = torch.int32 if self.page else torch.int64
        return Sample(str(self), (query, *caches, torch.tensor(lens, dtype=lens_dtype)), kwargs)

    def as_pages(
        self, caches: list[Tensor], lens: list[int], seed: int
    ) -> tuple[list[Tensor], Tensor]:
        """The caches as pages in one shuffled order, and a table without entries past a length."""
        pairs = [paged(x, self.page, torch.Generator().manual_seed(seed)) for x in caches]
        table = pairs[0][1]
        for entries, length in zip(table, lens, strict=True):
            entries[-(-length // self.page) :] = 2**31 - 1
        return [pages for pages, _ in pairs], table

    def score_arguments(
        self, width: int, lens: list[int], generator: torch.Generator
    ) -> dict[str, Any]:
        heads = self.heads[0]
        if self.scores == "softcap":
            return {"softcap": 15.0}
        if self.scores == "alibi":
            return {"alibi_slopes": torch.rand(4, heads, generator=generator) * 0.3}
        if self.scores == "sink":
            return {"sink": torch.randn(heads, generator=generator).to(self.dtype)}
        if self.scores == "left_padding":  # keys from the last quarter of each cache only
            first = torch.tensor(lens)[:, None] * 3 // 4
            return {"mask": (torch.arange(width) >= first)[:, None, None]}
        if self.scores == "mask":
            mask = torch.rand(4, 1, self.queries, width, generator=generator) < 0.7
            return {"mask": mask}
        return {}

    def __str__(self) -> str:
        N, M, page, hiding, (D, Dv), (Hq, Hkv), dtype, scores, layout, rest = self
        sizes = f"N{N}-M{M}-page{page}-{hiding}-D{D},{Dv}-H{Hq},{Hkv}"
        return f"{sizes}-{str(dtype)[6:]}-{scores}-{layout}-{rest}"


DRAWN = (WIDTHS, HEADS, DTYPES, SCORES, LAYOUTS, RESTS)


def grid() -> list[Case]:
    """In a full run the dimensions that are no part of the product are spread evenly over it."""
    if not FULL:
        return [Case(*row) for row in rows(20, QUERIES, LONGEST, PAGES, list(HIDING), *DRAWN)]
    cells = 2 * list(product(QUERIES, LONGEST, PAGES, HIDING))
    mixed = rows(len(cells), *DRAWN)
    return [Case(*cell, *row) for cell, row in zip(cells, mixed, strict=True)]


@pytest.mark.parametrize("case", grid(), ids=str)
def test_grid(case: Case, isa: str) -> None:
    assert_case(DECODE, case)


def accuracy_cases() -> list[Case]:
    """Classes of shapes for the rule over many seeds, of which each draws its own lengths."""
    queries, longest, count = ([1, 3, 64], [339, 1024], 36) if FULL else ([1, 3], [128, 339], 6)
    drawn = rows(count, queries, longest, PAGES, list(HIDING), *DRAWN)
    cases = [Case(*row) for row in drawn]
    return [case for case in cases if case.dtype != torch.float32 or case.widths[0] <= 96]


@pytest.mark.parametrize("case", accuracy_cases(), ids=str)
def test_error_is_no_larger_than_naive(case: Case, isa: str) -> None:
    assert_errors(DECODE, case)


def test_error_of_wide_heads_in_float32(isa: str) -> None:
    drawn = ((576, 64), (3, 3), torch.float32, "plain", "heads_first", "noise")
    assert_errors(DECODE, Case(128, 128, 0, "all", *drawn))
