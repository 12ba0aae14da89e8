"""fulgurite.nn.Router: capacity, masks, losses, load; and the routing of models by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fulgurite.nn.functional as F
from fulgurite.nn import MoE, Router, aux_losses, routing
from fulgurite.nn.routing import ROUTINGS


def routed(router: Router, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """What the router does without a capacity."""
    logits = router.logits(x.reshape(-1, x.shape[-1]))
    weights, ids, _ = F.moe_route(logits, router.top_k, **options)
    return weights, ids


def test_without_options_it_is_moe_route() -> None:
    router = Router(8, 6, 2)
    x = torch.randn(3, 5, 8)
    weights, ids = router(x)
    expected_weights, expected_ids = routed(router, x)
    assert torch.equal(weights, expected_weights)
    assert torch.equal(ids, expected_ids)
    assert router.load.tolist() == torch.bincount(ids.flatten(), minlength=6).tolist()


@pytest.mark.parametrize("drop", ["token", "choice", "weight", "priority"])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_capacity(drop: str, per_sequence: bool) -> None:
    torch.manual_seed(0)
    router = Router(8, 4, 2, capacity_factor=0.8, drop=drop, per_sequence=per_sequence)
    x = torch.randn(3, 10, 8)
    weights, ids = router(x)
    all_weights, all_ids = routed(router, x)
    parts = 3 if per_sequence else 1
    capacity = math.ceil(0.8 * (30 // parts) * 2 / 4)
    dropped = 0
    for part in range(parts):
        rows = slice(part * 30 // parts, (part + 1) * 30 // parts)
        full = F.moe_plan(all_ids[rows], 4, capacity, drop, all_weights[rows])[1] < 0
        assert torch.equal(ids[rows], all_ids[rows].masked_fill(full, -1))
        assert torch.equal(weights[rows], all_weights[rows].masked_fill(full, 0))
        dropped += int(full.sum())
    assert 0 < dropped == int(router.dropped)
    assert int(router.load.sum()) == 60  # chosen, dropped or not
    statistics = router.load_statistics()
    torch.testing.assert_close(float(statistics.dropped), dropped / 60)
    torch.testing.assert_close(statistics.share, router.load.double() / 60)
    assert float(statistics.imbalance) == float(router.load.max()) * 4 / 60
    assert int(statistics.idle) == int((router.load == 0).sum())
    router.update_bias()
    assert int(router.load.sum()) == int(router.dropped) == 0


def test_a_number_as_capacity() -> None:
    router = Router(8, 4, 1, capacity=1).eval()
    assert (router(torch.randn(50, 8))[1] >= 0).sum() <= 4
    assert int(router.dropped) == int(router.load.sum()) == 0  # not in training
    assert (Router(8, 4, 1, capacity=0)(torch.randn(5, 8))[1] == -1).all()


@pytest.mark.parametrize("per_sequence", [False, True])
def test_masked_tokens_take_no_place(per_sequence: bool) -> None:
    torch.manual_seed(0)
    router = Router(8, 3, 2, capacity=5, per_sequence=per_sequence, z_loss_weight=1.0)
    x = torch.randn(2, 9, 8)
    mask = torch.rand(2, 9) < 0.6
    x[~mask] = torch.nan
    weights, ids = router(x, mask)
    hidden = ~mask.flatten()
    assert ids[hidden].eq(-1).all()
    assert weights[hidden].eq(0).all()
    rows = [x[b][mask[b]] for b in range(2)] if per_sequence else [x[mask]]
    twin = Router(8, 3, 2, capacity=5)
    twin.load_state_dict(router.state_dict())
    kept = [twin(row) for row in rows]
    # The bits of torch's product, which makes the logits, depend on how many rows there are.
    torch.testing.assert_close(weights[~hidden], torch.cat([w for w, _ in kept]))
    assert torch.equal(ids[~hidden], torch.cat([i for _, i in kept]))
    logits = router.logits(x[mask])
    torch.testing.assert_close(router.aux_loss, F.moe_z_loss(logits))


def test_balance_within_sequences() -> None:
    router = Router(8, 4, 2, balance_loss_kind="sequence", balance_loss_weight=0.5)
    x = torch.randn(3, 7, 8)
    _, ids = router(x)
    logits = router.logits(x.flatten(0, 1))
    losses = [F.moe_balance_loss(logits[s : s + 7], ids[s : s + 7]) for s in (0, 7, 14)]
    torch.testing.assert_close(router.aux_loss, 0.5 * torch.stack(losses).mean())


def test_jitter_in_training_only() -> None:
    router = Router(8, 64, 8, jitter=0.5)
    x = torch.randn(30, 8)
    assert not torch.equal(router(x)[0], router(x)[0])
    router.eval()
    assert torch.equal(router(x)[0], router(x)[0])


def test_second_experts_at_random() -> None:
    """Twice as often as their share of the weight; first ones always, and all of them in eval."""
    torch.manual_seed(0)
    router = Router(1, 3, 2, random_second=True, score="sigmoid", capacity=5000)
    sure = torch.tensor([0.9, 0.1, 0.0]).logit(eps=1e-6)
    with torch.no_grad():
        router.weight.copy_(sure[:, None])
    x = torch.ones(8000, 1)
    weights, ids = router(x)
    used = ids[:, 1] >= 0
    torch.testing.assert_close(used.float().mean(), torch.tensor(0.2), rtol=0, atol=0.02)
    assert (weights[:, 1] > 0).eq(used).all()
    assert ids[:5000, 0].eq(0).all()
    assert ids[5000:, 0].eq(-1).all()  # the capacity
    assert int(router.dropped) == 3000  # who is not drawn was not dropped
    assert not torch.equal(router(x)[0], router(x)[0])
    router.eval()
    assert torch.equal(router(x)[1][:5000], torch.tensor([0, 1], dtype=torch.int32).expand(5000, 2))


def test_second_experts_that_weigh_as_much_are_always_used() -> None:
    router = Router(4, 3, 2, random_second=True)
    with torch.no_grad():
        router.weight.zero_()
    assert (router(torch.randn(500, 4))[1] >= 0).all()


def test_second_experts_pass_their_gradients_where_used() -> None:
    torch.manual_seed(0)
    router = Router(8, 4, 2, random_second=True)
    x = torch.randn(200, 8, requires_grad=True)
    weights, ids = router(x)
    unused = ids[:, 1] < 0
    assert unused.any()
    (grad,) = torch.autograd.grad(weights[:, 1].sum(), x)
    assert (grad == 0).all(1).equal(unused)


def test_rules_of_the_selection_bias() -> None:
    router = Router(
        4, 3, 1, score="sigmoid", bias_update_rate=0.5, bias_rule="proportional", bias_center=True
    )
    router.load += torch.tensor([2, 0, 4])
    router.update_bias()
    assert router.selection_bias is not None
    torch.testing.assert_close(router.selection_bias, torch.tensor([0.0, 0.5, -0.5]))


@pytest.mark.parametrize("shape", [(0, 8), (0, 5, 8), (3, 0, 8), (8,)])
def test_shapes_without_tokens(shape: tuple[int, ...]) -> None:
    router = Router(
        8,
        4,
        2,
        capacity_factor=1.0,
        per_sequence=True,
        balance_loss_kind="sequence",
        balance_loss_weight=1.0,
    )
    T = math.prod(shape[:-1])
    weights, ids = router(torch.randn(shape))
    assert weights.shape == ids.shape == (T, 2)
    assert router.aux_loss == 0 or T > 0


OPTIONS: list[dict[str, Any]] = [
    {"capacity_factor": 0.9, "per_sequence": True, "balance_loss_weight": 0.1},
    {
        "score": "sqrtsoftplus",
        "bias": True,
        "bias_update_rate": 0.1,
        "capacity": 3,
        "drop": "weight",
    },
    {"random_second": True, "jitter": 0.1, "capacity": 3, "drop": "choice"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_script_and_compile(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    router = Router(8, 4, 2, **options)
    x, mask = torch.randn(2, 6, 8), torch.rand(2, 6) < 0.8
    weights, ids = router(x, mask)
    for other in (
        torch.jit.script(router),
        torch.compile(router, fullgraph=True, dynamic=True, backend="aot_eager"),
    ):
        for tokens, hidden in ((x, mask), (torch.randn(3, 5, 8), None)):
            torch.manual_seed(1)
            expected_weights, expected_ids = router(tokens, hidden)
            torch.manual_seed(1)
            actual_weights, actual_ids = other(tokens, hidden)
            assert torch.equal(actual_ids, expected_ids)
            torch.testing.assert_close(actual_weights, expected_weights)
    assert weights.shape == ids.shape


@pytest.mark.parametrize("name", ROUTINGS)
def test_routing_by_name(name: str) -> None:
    """Every model trains: all gradients are there, and the losses count."""
    torch.manual_seed(0)
    small = {"num_experts": 16, "top_k": min(ROUTINGS[name]["top_k"], 4)}
    router = Router(8, **routing(name, **small))
    x = torch.randn(2, 16, 8, requires_grad=True)
    weights, ids = router(x)
    assert int(ids.max()) < 16
    sums = weights.sum(1)[(ids >= 0).all(1)]
    if router.renormalize:
        torch.testing.assert_close(sums, torch.full_like(sums, router.routed_scale))
    (weights.square().sum() + aux_losses(router)).backward()
    assert all(p.grad is not None for p in router.parameters())
    assert x.grad is not None
    router.update_bias()


def test_names_give_published_sizes() -> None:
    options = routing("deepseek_v3", top_k=4)
    assert (options["num_experts"], options["top_k"], options["num_groups"]) == (256, 4, 8)
    assert routing("deepseek_v3")["top_k"] == 8  # a copy was changed
    with pytest.raises(ValueError, match=r"expected one of switch, gshard, .*, got 'bert'"):
        routing("bert")


def test_aux_losses_reads_routers_wherever_they_are() -> None:
    model = nn.ModuleList([Router(8, 4, 2, z_loss_weight=0.1), MoE(8, 4, 4, 2, z_loss_weight=0.1)])
    for module in model:
        module(torch.randn(3, 8))
    torch.testing.assert_close(aux_losses(model), model[0].aux_loss + model[1].aux_loss)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"top_k in \[1, 4\], got 0"):
        Router(8, 4, 0)
    with pytest.raises(ValueError, match="random_second needs top_k=2, got 3"):
        Router(8, 4, 3, random_second=True)
    with pytest.raises(ValueError, match="needs a sigmoid score"):
        Router(8, 4, 2, selection_bias=True)
    with pytest.raises(ValueError, match="capacity or a capacity_factor, got both"):
        Router(8, 4, 2, capacity=3, capacity_factor=1.0)
    with pytest.raises(ValueError, match="capacity of at least 0, got -1"):
        Router(8, 4, 2, capacity=-1)
    with pytest.raises(ValueError, match=r"capacity_factor of at least 0 and finite, got -0\.5"):
        Router(8, 4, 2, capacity_factor=-0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'top_group'"):
        MoE(8, 4, 4, 2, top_group=3)


@pytest.mark.parametrize(
    "options",
    [
        {"score": "x"},
        {"group_score": "u"},
        {"drop": "z"},
        {"bias_rule": "q"},
        {"balance_loss_kind": "q"},
        {"eps": math.nan},
        {"eps": -1.0},
        {"routed_scale": math.inf},
        {"jitter": math.nan},
        {"jitter": -1.0},
        {"balance_loss_weight": math.nan},
        {"z_loss_weight": math.inf},
        {"capacity_factor": math.nan},
        {"num_groups": 3},
        {"top_groups": 0},
    ],
    ids=str,
)
def test_options_are_checked_when_it_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Router: expected .*{next(iter(options))}"):
        Router(8, 4, 2, **options)
