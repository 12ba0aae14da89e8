"""Router losses and the selection bias beyond the generated checks: every kind with every score.

T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import assert_same_bits, threads
from fulgurite.testing.references import moe as reference

NAN, INF = float("nan"), float("inf")
SCORES = ("softmax", "softmax_topk", "sigmoid", "sqrtsoftplus")
KINDS = ("switch", "hf", "gshard", "sequence", "cv2")


def options_of(kind: str, T: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
    """What a kind needs: numbers of sequences, of which most have no token."""
    if kind != "sequence":
        return {"kind": kind}
    used = torch.randint(0, max(T, 1), (3,), generator=generator)
    sequence_ids = used[torch.randint(0, 3, (T,), generator=generator)]
    return {"kind": kind, "sequence_ids": sequence_ids.to(dtype)}


def with_gradient(function: Any, logits: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, *args, **kwargs)
    (grad,) = torch.autograd.grad(3 * loss, leaf, allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach(), "grad": grad}


@given(
    seed=st.integers(0, 10_000),
    T=st.integers(0, 30),
    E=st.integers(1, 40),
    K=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    score=st.sampled_from(SCORES),
    masked=st.booleans(),
    wide=st.booleans(),
)
def test_any_balance_loss(
    isa: str,
    seed: int,
    T: int,
    E: int,
    K: int,
    kind: str,
    score: str,
    masked: bool,
    wide: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.int64 if wide else torch.int32
    logits = torch.randn(T, E, generator=generator, dtype=torch.float64)
    ids = torch.randint(-1, E + 1, (T, K), generator=generator).to(dtype)
    options = options_of(kind, T, generator, dtype) | {"score": score}
    if masked:
        options["token_mask"] = torch.rand(T, generator=generator) < 0.6
    expected = with_gradient(reference.moe_balance_loss, logits, ids, **options)
    if masked:  # what is hidden is not looked at
        logits[~options["token_mask"]] = torch.tensor([NAN, INF, -INF])[
            torch.arange(E) % 3
        ].double()
    actual = with_gradient(F.moe_balance_loss, logits, ids, **options)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", SCORES)
def test_without_tokens_the_loss_and_its_gradient_are_zero(kind: str, score: str) -> None:
    generator = torch.Generator()
    for logits, mask in (
        (torch.full((4, 3), NAN), torch.zeros(4, dtype=torch.bool)),
        (torch.empty(0, 3), None),
    ):
        T = logits.shape[0]
        options = options_of(kind, T, generator, torch.int32)
        ids = torch.zeros(T, 2, dtype=torch.int32)
        found = with_gradient(
            F.moe_balance_loss, logits, ids, score=score, token_mask=mask, **options
        )
        assert found["loss"] == 0
        assert found["grad"].eq(0).all()
        assert F.moe_z_loss(logits, mask) == 0


@pytest.mark.parametrize("score", SCORES)
def test_balanced_routers(score: str) -> None:
    logits = torch.zeros(12, 4, dtype=torch.float64)
    ids = torch.stack([torch.arange(12) % 4, (torch.arange(12) + 1) % 4], 1)
    for kind, value in (("switch", 1.0), ("hf", 2.0), ("gshard", 1.0), ("cv2", 0.0)):
        loss = F.moe_balance_loss(logits, ids, score=score, kind=kind)
        torch.testing.assert_close(loss, torch.tensor(value, dtype=torch.float64))
    halves = torch.arange(12) // 6 * 7
    per_sequence = F.moe_balance_loss(
        logits, ids, score=score, kind="sequence", sequence_ids=halves
    )
    torch.testing.assert_close(per_sequence, torch.tensor(1.0, dtype=torch.float64))
    assert F.moe_balance_loss(logits[:, :1], ids[:, :1] * 0, score=score, kind="cv2") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nan_that_is_seen_reaches_the_loss(kind: str) -> None:
    logits = torch.randn(6, 4)
    logits[2, 1] = NAN
    ids = torch.arange(4).repeat(3).view(6, 2)
    options = options_of(kind, 6, torch.Generator().manual_seed(0), torch.int64)
    assert F.moe_balance_loss(logits, ids, **options).isnan()
    assert F.moe_z_loss(logits).isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_bits_for_any_number_of_threads(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3000, 24, generator=generator)
    ids = torch.randint(0, 24, (3000, 4), generator=generator)
    options = options_of(kind, 3000, generator, torch.int32)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(with_gradient(F.moe_balance_loss, logits, ids, **options))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@given(
    E=st.integers(1, 20),
    seed=st.integers(0, 1000),
    proportional=st.booleans(),
    center=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_bias_update(
    isa: str, E: int, seed: int, proportional: bool, center: bool, dtype: torch.dtype
) -> None:
    """Counts so large that float32 would not tell them apart are told apart."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 3, (E,), generator=generator) + (seed % 2) * (1 << 40)
    bias = torch.randn(E, generator=generator).to(dtype)
    rule = "proportional" if proportional else "sign"
    (expected,) = reference.moe_update_bias_(bias, counts, 0.25, rule=rule, center=center)
    before = bias._version
    assert F.moe_update_bias_(bias, counts, 0.25, rule, center) is bias
    assert bias._version > before
    torch.testing.assert_close(bias, expected)
