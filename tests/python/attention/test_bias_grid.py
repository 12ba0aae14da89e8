"""Biases and masks of every broadcast shape, as PyTorch's and xFormers' attention tests pass them.

A normal run takes a sample in which every value occurs; ``FULGURITE_FULL=1`` takes every triple of
shape, dtypes and lengths, long sequences too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from attention.grids import DTYPES, assert_case, assert_errors, rows, yardsticks
from common_checks import DEVICE, FULL
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.references.attention import attention_naive, expand_pairs
from fulgurite.testing.samples.attention import qkv

# A letter a dim: B batch, b half of it (which repeats), H query heads, N queries, M keys.
SHAPES = ["BHNM", "1HNM", "B1NM", "11NM", "HNM", "NM", "bHNM", "b1NM", "BH1M", "1H1M", "B11M",
          "111M", "M", "BHN1", "1HN1", "11N1", "N1", "BH11", "H11", "1111", "1", ""]  # fmt: skip
LENGTHS = [(1, 147), (11, 130), (17, 267), (49, 49), (113, 203), (128, 217), (144, 144),
           (196, 196), (267, 17), (3, 514)]  # fmt: skip
LONG = [(267, 514), (514, 267), (514, 514), (1030, 514)]
# Of queries, keys and values, and of what is added to the scores: a bias, or a mask of booleans.
BIASES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
          (torch.bfloat16, torch.float32), (torch.float16, torch.float16),
          (torch.float16, torch.float32)]  # fmt: skip
MASKS = [(dtype, torch.bool) for dtype in DTYPES]
WIDTHS = [8, 16, 32, 40, 64, 80, 96, 128]
HEADS = [(2, 2), (4, 1), (4, 2)]
HIDING: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "causal_top_left": {"causal": True, "align": "top_left"},
    "window": {"window_left": 40, "window_right": 25},
}
HIDDEN = ["nothing", "entries", "rows"]  # what is −inf, or False
LAYOUTS = ["contiguous", "slice", "transposed", "expanded"]
DRAWN = (WIDTHS, HEADS, list(HIDING), HIDDEN, LAYOUTS)


def naive(query: Tensor, key: Tensor, value: Tensor, **scores: Any) -> tuple[Tensor, Tensor]:
    """Plain PyTorch, with 0 instead of NaN where a bias of −inf hides a whole row."""
    if "bias" in scores:
        shape = (*query.shape[:3], key.shape[2])
        scores["mask"] = expand_pairs(scores["bias"] != -math.inf, shape)
    return attention_naive(query, key, value, **scores)


ATTENTION = replace(OPERATORS["attention"], naive=naive)


class Case(NamedTuple):
    """``dtypes`` of the query and of the bias or mask, which has a letter of ``shape`` a dim."""

    shape: str
    dtypes: tuple[torch.dtype, torch.dtype]
    lengths: tuple[int, int]
    width: int
    heads: tuple[int, int]
    hiding: str
    hidden: str
    layout: str

    @property
    def dtype(self) -> torch.dtype:
        return self.dtypes[0]

    def sample(self, seed: int) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        (N, M), (Hq, Hkv) = self.lengths, self.heads
        B = 4 if "b" in self.shape else 2
        sizes = {"B": B, "b": B // 2, "H": Hq, "N": N, "M": M, "1": 1}
        tensor = self.tensor([sizes[letter] for letter in self.shape], generator)
        tensors = qkv(generator, self.dtype, DEVICE, B=B, Hq=Hq, Hkv=Hkv, N=N, M=M, D=self.width)
        name = "mask" if tensor.dtype == torch.bool else "bias"
        return Sample(str(self), tensors, HIDING[self.hiding] | {name: tensor})

    def tensor(self, shape: list[int], generator: torch.Generator) -> Tensor:
        """Random numbers, laid out in memory as models do it, with −inf or False among them."""
        padded = [size + 3 for size in shape] if self.layout == "slice" else shape
        numbers = torch.randn(padded, generator=generator)
        kept = torch.ones(padded, dtype=torch.bool)
        if self.hidden == "entries":
            kept = torch.rand(padded, generator=generator) < 0.7
        elif self.hidden == "rows":
            per_row = [*padded[:-1], 1][: len(padded)]
            kept = (torch.rand(per_row, generator=generator) < 0.8).expand(padded)
        if self.dtypes[1] == torch.bool:
            tensor = kept.contiguous()
        else:
            tensor = numbers.masked_fill(~kept, -math.inf).to(self.dtypes[1])
        if self.layout == "slice":
            return tensor[tuple(slice(1, size + 1) for size in shape)]
        if self.layout == "transposed" and tensor.dim() > 1:
            return tensor.mT.contiguous().mT
        if self.layout == "expanded" and tensor.dim() > 0:
            return tensor[:1].expand(shape)
        return tensor

    def __str__(self) -> str:
        shape, dtypes, (N, M), D, (Hq, Hkv), *drawn = self
        types = ",".join(str(dtype)[6:] for dtype in dtypes)
        sizes = f"N{N}-M{M}-D{D}-H{Hq},{Hkv}"
        return "-".join(["x".join(shape) or "scalar", types, sizes, *drawn])


def grid(dtypes: list[tuple[torch.dtype, torch.dtype]]) -> list[Case]:
    """In a full run the dimensions that are no part of the product are spread evenly over it."""
    if not FULL:
        return [Case(*row) for row in rows(len(SHAPES), SHAPES, dtypes, LENGTHS, *DRAWN)]
    cells = list(product(SHAPES, dtypes, LENGTHS))
    mixed = rows(len(cells), *DRAWN)
    long = rows(len(SHAPES), SHAPES, dtypes, LONG, *DRAWN)
    return [*(Case(*cell, *row) for cell, row in zip(cells, mixed, strict=True)),
            *(Case(*row) for row in long)]  # fmt: skip


def size_of_sum(case: Case) -> float:
    """Of the terms behind an element of the bias's gradient: dS of every pair that shares it.

    One number alone may be exact by luck: its rows are of size dO·v each, and of random sign. And
    where all queries share a bias, float32 adds rows up in a single chain, which rounds √rows times
    as much: that is let off here, and shown below.
    """
    if "N" in case.shape or ("M" in case.shape and case.dtype != torch.float32):
        return 0.0
    sizes = {"B": 2, "H": case.heads[0], "N": case.lengths[0]}
    chain = math.prod(size for dim, size in sizes.items() if dim not in case.shape)
    _, reference, _ = yardsticks(ATTENTION, case, 0)
    most = reference["grad of bias"].abs().max().item() if case.dtype == torch.float32 else 0.0
    return float(chain**0.5 * max(case.width**0.5, most))


@pytest.mark.parametrize("case", grid(BIASES), ids=str)
def test_biases(case: Case, isa: str) -> None:
    sums = {"grad of bias": size_of_sum(case)}
    assert_case(ATTENTION, case, magnitude=2 * case.width**0.5, sums=sums)  # of dO·v − δ


@pytest.mark.parametrize("case", grid(MASKS), ids=str)
def test_masks(case: Case, isa: str) -> None:
    assert_case(ATTENTION, case, magnitude=2 * case.width**0.5)  # of dO·v − δ


def accuracy_cases() -> list[Case]:
    """Classes of shapes for the rule over many seeds."""
    shapes, lengths = [s for s in SHAPES if "M" in s or "N" in s], [(49, 49), (33, 70)]
    if not FULL:
        return [Case(*row) for row in rows(4, shapes, BIASES, lengths, *DRAWN)]
    return [Case(*row) for row in rows(2 * len(shapes), shapes, BIASES + MASKS, lengths, *DRAWN)]


@pytest.mark.parametrize("case", accuracy_cases(), ids=str)
def test_error_is_no_larger_than_naive(case: Case, isa: str) -> None:
    assert_errors(ATTENTION, case)


def test_error_of_sums_over_queries_in_float32(isa: str) -> None:
    drawn = (16, (4, 2), "all", "nothing", "contiguous")
    assert_errors(ATTENTION, Case("111M", (torch.float32, torch.float32), (514, 50), *drawn))
