"""Routing beyond the generated checks: ties, NaN, groups, sentinels, batches, other formulas.

T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import DEVICE, assert_same_bits, threads
from fulgurite.testing.references import moe as reference

NAN, INF = float("nan"), float("inf")
SCORES = ("softmax", "softmax_topk", "sigmoid", "sqrtsoftplus")
AWKWARD = [NAN, INF, -INF, 0.0, -0.0, 1.0, 1.0, -1.0, 100.0, -200.0]


def awkward_logits(seed: int, T: int, E: int, dtype: torch.dtype) -> Tensor:
    """Logits in which ties, NaN, infinities and saturated scores are common."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(AWKWARD), (T, E), generator=generator)
    return torch.tensor(AWKWARD)[picks].to(dtype)


@given(
    seed=st.integers(0, 1000),
    E=st.integers(1, 70),
    data=st.data(),
    score=st.sampled_from(SCORES),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_row_is_chosen_as_defined(
    isa: str, seed: int, E: int, data: st.DataObject, score: str, dtype: torch.dtype
) -> None:
    k = data.draw(st.integers(1, E))
    n_group = data.draw(st.sampled_from([g for g in range(1, E + 1) if E % g == 0]))
    topk_group = data.draw(st.integers(-(-k * n_group // E), n_group))
    options = {
        "score": score,
        "n_group": n_group,
        "topk_group": topk_group,
        "group_score": data.draw(st.sampled_from(["top2", "max"])),
        "renormalize": data.draw(st.booleans()),
    }
    logits = awkward_logits(seed, 7, E, dtype)
    weights, ids, counts = F.moe_route(logits, k, **options)
    expected_weights, expected_ids, expected_counts = reference.moe_route(logits, k, **options)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(counts, expected_counts)
    torch.testing.assert_close(weights, expected_weights, equal_nan=True)
    assert all(len(set(row)) == k and min(row) >= 0 and max(row) < E for row in ids.tolist())


def test_ties_go_to_the_lowest_index(isa: str) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0, -0.0, 0.0, -0.0, 0.0]])
    assert F.moe_route(logits, 4)[1].tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    # Saturated sigmoids are equal however far apart the logits are.
    assert F.moe_route(logits * 100, 2, score="sigmoid")[1].tolist() == [[0, 1], [0, 1]]


def test_nan_ranks_below_minus_infinity_and_infinities_give_nan_weights(isa: str) -> None:
    logits = torch.tensor([[NAN, -INF, 3.0, NAN], [NAN] * 4, [INF, INF, 0.0, 1.0]])
    weights, ids, counts = F.moe_route(logits, 3)
    assert ids.tolist() == [[2, 1, 0], [0, 1, 2], [0, 1, 3]]
    assert weights[:3].isnan().all()
    assert F.moe_route(logits, 2)[0][0].tolist() == [1.0, 0.0]  # the NaN was not chosen
    assert counts.tolist() == [3, 3, 2, 1]


def test_groups_that_are_left_out_rank_below_nan(isa: str) -> None:
    # Group scores: 9 + 8, 1 + NaN = NaN, −inf, 6 + 5.
    logits = torch.tensor([[9.0, 8.0, 1.0, NAN, -INF, -INF, 6.0, 5.0]])
    assert F.moe_route(logits, 4, n_group=4, topk_group=2)[1].tolist() == [[0, 1, 6, 7]]
    # The third group kept is the one of −inf: it beats NaN.
    assert F.moe_route(logits, 6, n_group=4, topk_group=3)[1].tolist() == [[0, 1, 6, 7, 4, 5]]
    # By its maximum the group with a NaN counts as 1, and its NaN belongs to a kept group.
    options = {"n_group": 4, "topk_group": 3, "group_score": "max"}
    assert F.moe_route(logits, 6, **options)[1].tolist() == [[0, 1, 6, 7, 2, 3]]


def test_the_bias_chooses_and_does_not_weigh() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    bias = torch.tensor([0.0, 1e9, 0.0, 2e9], requires_grad=True)
    weights, ids, _ = F.moe_route(logits, 2, bias=bias, score="sigmoid", renormalize=False)
    assert ids.tolist() == [[3, 1]]
    assert weights.tolist() == [[0.5, 0.5]]  # gathered: nothing of the large bias is left
    weights.sum().backward()
    assert bias.grad is None
    assert logits.grad is not None


def test_masked_tokens_are_not_looked_at(isa: str) -> None:
    logits = torch.randn(4, 6, dtype=torch.float64)
    logits[1] = NAN
    logits.requires_grad_()
    mask = torch.tensor([True, False, True, False])
    weights, ids, counts = F.moe_route(logits, 2, token_mask=mask)
    assert ids[~mask].eq(6).all()
    assert weights[~mask].eq(0).all()
    assert int(counts.sum()) == 4
    (weights * torch.randn(4, 2)).sum().backward()
    assert logits.grad is not None
    assert logits.grad[~mask].eq(0).all()
    assert logits.grad[mask].isfinite().all()


def test_forced_ids_with_duplicates_and_sentinels() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    forced = torch.tensor([[2, 2, 0], [-1, 5, 1 << 40], [4, -7, 1]])
    weights, ids, counts = F.moe_route(logits, 3, forced_ids=forced)
    assert ids.tolist() == [[2, 2, 0], [-1, 5, 5], [4, -7, 1]]
    assert counts.tolist() == [1, 1, 2, 0, 1]
    assert weights[1].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(weights[0], logits[0, [2, 2, 0]].softmax(0))
    torch.testing.assert_close(weights[2, [0, 2]], logits[2, [4, 1]].softmax(0))
    (weights[1].sum()).backward()
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_sqrtsoftplus_has_a_finite_gradient_down_to_minus_infinity(isa: str) -> None:
    for dtype in (torch.float64, torch.float32):
        logits = torch.tensor([[0.0, -30.0, -60.0, -200.0, -INF]], dtype=dtype, requires_grad=True)
        weights, _, _ = F.moe_route(logits, 5, score="sqrtsoftplus", renormalize=False)
        weights.sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        half = (logits.detach()[0, 1:4] / 2).exp()  # √softplus tends to e^(x/2)
        torch.testing.assert_close(weights[0, 1:4], half, rtol=1e-5, atol=0)
        torch.testing.assert_close(logits.grad[0, 1:4], half / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("score", SCORES)
def test_a_row_does_not_depend_on_its_batch(isa: str, score: str) -> None:
    logits = torch.randn(600, 40)
    together = F.moe_route(logits, 6, score=score, renormalize=False)
    alone = F.moe_route(logits[317:318].clone(), 6, score=score, renormalize=False)
    for i in range(2):
        assert_same_bits({"row": alone[i]}, {"row": together[i][317:318]})
    with threads(1):
        one = F.moe_route(logits, 6, score=score, renormalize=False)
    assert_same_bits(dict(enumerate(one)), dict(enumerate(together)))


# ---------------------------------------------------------------- formulas of known models


def test_mixtral(isa: str) -> None:
    logits = torch.randn(50, 8)
    probabilities, ids = logits.softmax(-1).topk(2, -1)
    weights = probabilities / probabilities.sum(-1, keepdim=True)
    actual = F.moe_route(logits, 2)
    assert torch.equal(actual[1].long(), ids)
    torch.testing.assert_close(actual[0], weights)


def test_olmoe_and_gpt_oss(isa: str) -> None:
    logits = torch.randn(50, 64)
    probabilities, ids = logits.softmax(-1).topk(8, -1)
    actual = F.moe_route(logits, 8, renormalize=False)
    assert torch.equal(actual[1].long(), ids)
    torch.testing.assert_close(actual[0], probabilities)
    best, ids = logits.topk(8, -1)
    actual = F.moe_route(logits, 8, score="softmax_topk", renormalize=False)
    assert torch.equal(actual[1].long(), ids)
    torch.testing.assert_close(actual[0], best.softmax(-1))


def test_deepseek_v3(isa: str) -> None:
    logits, bias = torch.randn(50, 64), torch.randn(64) * 0.1
    scores = logits.sigmoid()
    choice = scores + bias
    groups = choice.view(50, 8, 8).topk(2, -1).values.sum(-1).topk(4, -1).indices
    kept = torch.zeros(50, 8, dtype=torch.bool).scatter(1, groups, True).repeat_interleave(8, 1)
    ids = choice.masked_fill(~kept, -INF).topk(6, -1).indices
    weights = scores.gather(1, ids)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5
    actual = F.moe_route(logits, 6, bias=bias, score="sigmoid", n_group=8, topk_group=4, scale=2.5)
    assert torch.equal(actual[1].long(), ids)
    torch.testing.assert_close(actual[0], weights)


def test_autocast_routes_in_float32() -> None:
    logits = torch.randn(20, 16).bfloat16()
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        actual = F.moe_route(logits, 4, score="sigmoid")
    assert_same_bits(
        dict(enumerate(actual)), dict(enumerate(F.moe_route(logits.float(), 4, score="sigmoid")))
    )
    assert actual[0].dtype == torch.float32


def test_functions_script_with_keywords() -> None:
    @torch.jit.script
    def routed(logits: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        weights, ids, counts = F.moe_route(logits, 2, score="sigmoid", scale=2.0)
        permutation, inverse, _offsets = F.moe_plan(ids, logits.size(1))
        same = F.moe_combine(F.moe_permute(x, permutation, inverse), inverse, weights)
        loss = F.moe_balance_loss(logits, ids) + F.moe_z_loss(logits)
        F.moe_update_bias_(torch.zeros(logits.size(1)), counts, 0.1)
        return F.moe_experts(x, ids, weights, w_in, w_out) + same + loss

    tensors = torch.randn(9, 4), torch.randn(9, 6), torch.randn(4, 10, 6), torch.randn(4, 6, 5)
    logits, x, w_in, w_out = tensors
    weights, ids, _ = F.moe_route(logits, 2, score="sigmoid", scale=2.0)
    loss = F.moe_balance_loss(logits, ids) + F.moe_z_loss(logits)
    expected = F.moe_experts(x, ids, weights, w_in, w_out) + x * weights.sum(1, True) + loss
    torch.testing.assert_close(routed(*tensors), expected)
