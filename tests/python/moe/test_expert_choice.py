"""Expert choice beyond the generated checks: ties, NaN, infinities, a layer as published."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import assert_same_bits, threads
from fulgurite.testing.references.moe_expert_choice import moe_route_expert_choice as reference

NAN, INF = float("nan"), float("inf")


@given(
    seed=st.integers(0, 10_000),
    T=st.integers(0, 40),
    E=st.integers(0, 40),
    data=st.data(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_call(
    isa: str, seed: int, T: int, E: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    """Rows repeat, so that whole tokens tie; others are NaN."""
    capacity = data.draw(st.integers(0, T))
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(6, E, generator=generator).to(dtype)
    kinds[1] = NAN
    kinds[2] = -INF
    if E > 0:
        kinds[3, 0] = INF
        kinds[4, -1] = -INF
    logits = kinds[torch.randint(0, 6, (T,), generator=generator)]
    weights, token_ids = F.moe_route_expert_choice(logits, capacity)
    expected_weights, expected_ids = reference(logits, capacity)
    assert torch.equal(token_ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights, equal_nan=True)


def test_ties_go_to_the_earlier_token_and_nan_comes_last(isa: str) -> None:
    logits = torch.tensor([[NAN, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-INF, -INF]])
    weights, token_ids = F.moe_route_expert_choice(logits, 5)
    assert token_ids.tolist() == [[2, 1, 3, 0, 4], [1, 3, 2, 0, 4]]
    assert weights[:, 3:].isnan().all()
    assert F.moe_route_expert_choice(logits, 2)[1].tolist() == [[2, 1], [1, 3]]


def test_a_token_that_nobody_takes_has_no_gradient(isa: str) -> None:
    logits = torch.randn(6, 3, dtype=torch.float64)
    logits[2] = NAN
    logits.requires_grad_()
    weights, token_ids = F.moe_route_expert_choice(logits, 2)
    weights.square().sum().backward()
    taken = torch.zeros(6, dtype=torch.bool)
    taken[token_ids.flatten().long()] = True
    assert logits.grad is not None
    assert not taken[2]
    assert logits.grad[~taken].eq(0).all()
    assert logits.grad[taken].ne(0).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    logits = torch.randn(5000, 24).mul(2).round().to(dtype)  # ties
    results = []
    for count in (1, 2, 3):
        leaf = logits.clone().requires_grad_()
        with threads(count):
            weights, token_ids = F.moe_route_expert_choice(leaf, 1000)
            weights.square().sum().backward()
        results.append({"weights": weights, "ids": token_ids, "grad": leaf.grad})
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_a_layer_of_experts_that_choose(isa: str) -> None:
    """Each expert gathers its tokens, and adds its weighted rows back."""
    T, E, H, capacity = 16, 4, 6, 8
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return noise.requires_grad_()

    x, router, experts = random(T, H), random(E, H), random(E, H, H)
    weights, token_ids = F.moe_route_expert_choice(x @ router.T, capacity)
    rows = torch.einsum("ech,ehk->eck", x[token_ids.long()], experts) * weights[..., None]
    y = torch.zeros(T, H, dtype=torch.float64).index_add(
        0, token_ids.flatten().long(), rows.flatten(0, 1)
    )
    scores = (x @ router.T).softmax(-1)  # (T, E)
    chosen = torch.zeros(T, E, dtype=torch.bool)
    chosen.scatter_(0, scores.topk(capacity, dim=0).indices, True)
    expected = torch.einsum("te,th,ehk->tk", scores * chosen, x, experts)
    torch.testing.assert_close(y, expected)
    for actual, wanted in zip(
        torch.autograd.grad(y.square().sum(), (x, router, experts)),
        torch.autograd.grad(expected.square().sum(), (x, router, experts)),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)
