"""Routing over the shapes and options of TransformerEngine's, Megatron's and vLLM's router tests.

A normal run takes a sample in which every value occurs; ``FULGURITE_FULL=1`` takes every cell.
The choice is compared, bit by bit, with sorts of the scores that the operator itself reports;
weights and gradients, for that choice, with float64.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F
from attention.grids import rows
from common_checks import FULL, reference_and_naive
from fulgurite.testing import OPERATORS, Sample, assert_accurate, evaluate

ROUTE = OPERATORS["moe_route"]
NAN, INF = float("nan"), float("inf")


def ramp(T: int, E: int, generator: torch.Generator) -> Tensor:
    """Rises through all tokens: far from 0, float32 cannot tell neighbours apart."""
    del generator
    return (torch.arange(T * E) - T * E // 2).view(T, E) * 1e-4


def slow_ramp(T: int, E: int, generator: torch.Generator) -> Tensor:
    """Rises through the experts, and a little from token to token: no sigmoid saturates."""
    del generator
    return (torch.arange(E) - E // 2) * 1e-2 + (torch.arange(T) - T // 2)[:, None] * 1e-4


def noise(T: int, E: int, generator: torch.Generator) -> Tensor:
    return torch.randn(T, E, generator=generator)


def ties(T: int, E: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-2, 3, (T, E), generator=generator).float()


def poisoned(T: int, E: int, generator: torch.Generator) -> Tensor:
    """Every other row is NaN, or +inf, or has some of both and of −inf."""
    logits = noise(T, E, generator)
    logits[1::8] = NAN
    logits[3::8] = INF
    logits[5::8, ::3] = -INF
    logits[7::8] = torch.tensor([NAN, INF, -INF, 0.5])[torch.arange(E) % 4]
    return logits


VALUES = {f.__name__: f for f in (ramp, slow_ramp, noise, ties, poisoned)}


class Case(NamedTuple):
    """T tokens, E experts; ``groups`` is (n_group, topk_group, group_score)."""

    source: str
    T: int
    E: int
    k: int
    score: str
    renormalize: bool
    scale: float
    bias: str | None
    groups: tuple[int, int, str] | None
    dtype: torch.dtype
    values: str

    def sample(self) -> Sample:
        generator = torch.Generator().manual_seed(0)
        logits = VALUES[self.values](self.T, self.E, generator).to(self.dtype)
        kwargs: dict[str, Any] = {
            "score": self.score,
            "renormalize": self.renormalize,
            "scale": self.scale,
        }
        if self.bias == "ramp":
            kwargs["bias"] = torch.arange(self.E).flip(0) * 0.1
        elif self.bias == "noise":
            kwargs["bias"] = torch.randn(self.E, generator=generator)
        if self.groups:
            kwargs |= zip(("n_group", "topk_group", "group_score"), self.groups, strict=True)
        if self.source == "megatron_padding":
            kwargs["token_mask"] = torch.arange(self.T) < self.T // 2
        return Sample(str(self), (logits, self.k), kwargs)

    def __str__(self) -> str:
        groups = "x".join(map(str, self.groups)) if self.groups else "whole"
        sizes = f"{self.source}-T{self.T}-E{self.E}-k{self.k}-{self.score}-{groups}"
        rest = f"renorm{int(self.renormalize)}-{self.scale}-bias_{self.bias}"
        return f"{sizes}-{rest}-{str(self.dtype)[6:]}-{self.values}"


def allowed(case: Case) -> bool:
    groups = case.groups
    return (
        case.k <= case.E
        and (case.bias is None or not case.score.startswith("softmax"))
        and (groups is None or case.E // groups[0] * groups[1] >= case.k)
    )


FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BOTH = (True, False)
# In the order of Case's fields.
GRIDS: dict[str, list[tuple[Any, ...]]] = {
    # A group counts by its best k/4 members.
    "transformer_engine_softmax": [
        *product((2048, 7168, 14234), (128, 32), (4,), ("softmax", "softmax_topk"), (False,),
                 (1.0, 1.2), (None,), (None, (8, 4, "max")), (torch.float32,), ("ramp",)),
        *product((2048, 7168, 14234), (128, 32), (8,), ("softmax", "softmax_topk"), (False,),
                 (1.0, 1.2), (None,), (None, (8, 4, "top2")), (torch.float32,), ("ramp",)),
    ],
    "transformer_engine_sigmoid": [
        *product((2048, 7168, 8992), (128, 32), (4,), ("sigmoid",), (True,), (1.0, 1.2),
                 (None, "ramp"), (None, (8, 4, "max")), (torch.float32,), ("slow_ramp",)),
        *product((2048, 7168, 8992), (128, 32), (8,), ("sigmoid",), (True,), (1.0, 1.2),
                 (None, "ramp"), (None, (8, 4, "top2")), (torch.float32,), ("slow_ramp",)),
    ],
    "megatron": [
        *product((64,), (4,), (2,), ("softmax", "softmax_topk", "sigmoid"), (False,), (1.0,),
                 (None,), (None,), (torch.bfloat16, torch.float32, torch.float64), ("noise",)),
        *product((512,), (16,), (4,), ("softmax", "softmax_topk", "sigmoid"), (False,),
                 (1.0, 16.0), (None,), ((8, 3, "top2"), (4, 2, "top2")),
                 (torch.bfloat16, torch.float32), ("noise",)),
    ],
    "megatron_padding": [
        *product((64,), (4,), (2,), ("softmax", "sigmoid"), BOTH, (1.0,), (None,), (None,),
                 (torch.bfloat16,), ("noise", "poisoned")),
    ],
    "vllm_topk": [
        *product((1, 33, 56), (6, 16), (3, 4), ("softmax", "sigmoid"), BOTH, (1.0,),
                 (None, "noise"), (None,), FLOATS, ("noise",)),
        *product((4,), (6, 8, 16), (3, 4), ("softmax", "sigmoid"), (False,), (1.0,),
                 (None, "noise"), (None,), FLOATS, ("poisoned",)),
    ],
    "vllm_grouped": [
        *product((1, 33, 64), (16,), (2,), ("softmax", "sigmoid"), BOTH, (1.0, 2.5),
                 (None, "noise"), ((8, 2, "top2"), (8, 2, "max")), FLOATS, ("noise",)),
    ],
    # Sizes and values that none of them has: no expert more than k, primes, no tokens.
    "edges": [
        *product((0, 1, 29), (1, 7, 37, 129, 257), (1, 5, 7, 37, 129, 257),
                 ("softmax", "softmax_topk", "sigmoid", "sqrtsoftplus"), BOTH, (1.0,),
                 (None, "noise"), (None,), FLOATS, ("ties", "poisoned")),
    ],
}  # fmt: skip


def grid() -> list[Case]:
    """Of each source as many cells as its share of values asks for; all in a full run."""
    cases = []
    for source, cells in GRIDS.items():
        whole = [case for cell in cells if allowed(case := Case(source, *cell))]
        step = 1 if FULL else max(len(whole) // 8, 1)
        offsets = range(0, len(whole), step)
        # Neighbouring cells differ in the last values only: the offset walks through those too.
        cases += (
            whole
            if FULL
            else [whole[min(o + i % step, len(whole) - 1)] for i, o in enumerate(offsets)]
        )
    return cases


def ranking(scores: Tensor, out: Tensor) -> Tensor:
    """Indices by falling score, earlier ones first among equals; then NaN; then what is out."""
    falling = torch.where(scores.isnan(), -INF, scores).sort(dim=-1, descending=True, stable=True)
    last = (scores.isnan().int() + 2 * out.int()).gather(-1, falling.indices)
    return falling.indices.gather(-1, last.sort(dim=-1, stable=True).indices)


def expected_ids(case: Case, call: Sample) -> Tensor:
    """By sorts of whole rows, of the scores in the operator's own bits."""
    logits, kwargs = call.args[0], call.kwargs
    T, E = logits.shape
    choice = logits.float()
    if not case.score.startswith("softmax"):
        scores, ids, _ = F.moe_route(logits, E, score=case.score, renormalize=False)
        choice = torch.empty_like(scores).scatter(1, ids.long(), scores)
        choice = choice + kwargs.get("bias", torch.zeros(E))
    out = torch.zeros(T, E, dtype=torch.bool)
    if case.groups:
        n_group, topk_group, kind = case.groups
        members = choice.view(T, n_group, -1)
        best = members.gather(2, ranking(members, torch.zeros_like(members, dtype=torch.bool)))
        value = (
            best[..., 0] + best[..., 1] if kind == "top2" and best.shape[2] > 1 else best[..., 0]
        )
        left_out = ranking(value, torch.zeros_like(value, dtype=torch.bool))[:, topk_group:]
        groups_out = torch.zeros(T, n_group, dtype=torch.bool).scatter(1, left_out, True)
        out = groups_out.repeat_interleave(E // n_group, 1)
    ids = ranking(choice, out)[:, : case.k]
    if "token_mask" in kwargs:
        ids = ids.masked_fill(~kwargs["token_mask"][:, None], E)
    return ids.int()


@pytest.mark.parametrize("case", grid(), ids=str)
def test_grid(case: Case, isa: str) -> None:
    call = case.sample()
    actual = evaluate(ROUTE.op, ROUTE, call, cotangent_dtype=case.dtype)
    assert torch.equal(actual["ids"], expected_ids(case, call))
    chosen = Sample(call.name, call.args, call.kwargs | {"forced_ids": actual["ids"]})
    assert_accurate(actual, *reference_and_naive(ROUTE, chosen, case.dtype), case.dtype)


def test_every_value_of_the_grids_occurs() -> None:
    """In a normal run too."""
    full = [Case(source, *cell) for source, cells in GRIDS.items() for cell in cells]
    full = [case for case in full if allowed(case)]
    for field in ("source", "E", "score", "renormalize", "bias", "dtype", "values"):
        assert {getattr(c, field) for c in grid()} == {getattr(c, field) for c in full}, field


# ---------------------------------------------------------------- losses of the same tests


def losses() -> list[tuple[Any, ...]]:
    cells = list(product((2048, 7168, 14234), (256, 128, 32), (4, 8), ("softmax", "sigmoid")))
    return cells if FULL else rows(6, (2048, 7168), (256, 128, 32), (4, 8), ("softmax", "sigmoid"))


@pytest.mark.parametrize(("T", "E", "k", "score"), losses())
def test_balance_loss(T: int, E: int, k: int, score: str, isa: str) -> None:
    """E/(k T²) · Σ_e counts_e Σ_t P_te, as TransformerEngine's auxiliary loss, and its gradient."""
    logits = slow_ramp(T, E, torch.Generator()).requires_grad_()
    _, ids, counts = F.moe_route(logits, k, score=score)
    loss = F.moe_balance_loss(logits, ids, score=score)
    wide = logits.detach().double().requires_grad_()
    scores = wide.softmax(-1) if score == "softmax" else wide.sigmoid()
    shares = scores / scores.sum(-1, keepdim=True)
    expected = (shares.sum(0) * counts).sum() * E / (k * T * T)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(
        grad.double(), wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max())
    )
