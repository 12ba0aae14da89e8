"""Checkpoints of other optimizers, of other versions and in other shapes, both ways."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from fulgurite.optim import AdamW
from optim.two_layers import model, train

MODES = ("foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay", "maximize")


def saved_by(kind: Any, **options: Any) -> dict[str, Any]:
    net = model()
    optimizer = kind(net.parameters(), weight_decay=0.5, lr=0.01, **options)
    train(net, optimizer, range(3))
    return copy.deepcopy(optimizer.state_dict())


def after_loading(kind: Any, saved: dict[str, Any], **options: Any) -> list[Tensor]:
    net = model()
    optimizer = kind(net.parameters(), weight_decay=0.5, lr=0.01, **options)
    optimizer.load_state_dict(copy.deepcopy(saved))
    train(net, optimizer, range(3, 5))
    return [p.detach() for p in net.parameters()]


def assert_close(some: list[Tensor], others: list[Tensor]) -> None:
    for a, b in zip(some, others, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- what torch.optim.AdamW promises


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_decay_stays_decoupled_whatever_is_loaded(kind: Any, options: dict[str, Any]) -> None:
    saved = saved_by(kind, **options)
    assert_close(after_loading(AdamW, saved), after_loading(torch.optim.AdamW, saved))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, AdamW])
def test_decay_stays_coupled_where_the_optimizer_was_made_so(kind: Any) -> None:
    net = model()
    first, second = list(net[0].parameters()), list(net[1].parameters())
    optimizer = AdamW([{"params": first, "decoupled": False}, {"params": second}])
    other = kind([{"params": first}, {"params": second}])
    train(net, other)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    assert [g["decoupled_weight_decay"] for g in optimizer.param_groups] == [False, True]


@pytest.mark.parametrize(
    "missing",
    [
        ("decoupled_weight_decay",),  # torch < 2.7
        ("decoupled_weight_decay", "fused", "differentiable", "capturable", "foreach"),  # 1.11
        (*MODES, "amsgrad"),
    ],
)
def test_entries_that_older_versions_lack(missing: tuple[str, ...]) -> None:
    saved = saved_by(torch.optim.AdamW)
    for group in saved["param_groups"]:
        for key in missing:
            del group[key]
    for state in saved["state"].values():
        state["step"] = int(state["step"])  # a number before 1.12
    assert_close(after_loading(AdamW, saved), after_loading(torch.optim.AdamW, saved))


def test_what_a_checkpoint_lacks_stays_the_groups_own() -> None:
    net = model()
    optimizer = AdamW(
        [
            {"params": list(net[0].parameters()), "ema_decay": 0.5, "eps": 1e-3, "amsgrad": True},
            {"params": list(net[1].parameters())},
        ],
        ema_decay=0.9,
    )
    saved = [{"lr": 0.25, "params": [0, 1]}, {"lr": 0.5, "params": [2, 3]}]
    optimizer.load_state_dict({"state": {}, "param_groups": saved})
    first, second = optimizer.param_groups
    assert (first["lr"], first["ema_decay"], first["eps"]) == (0.25, 0.5, 1e-3)
    assert first["amsgrad"] is True
    assert (second["lr"], second["ema_decay"], second["amsgrad"]) == (0.5, 0.9, False)
    train(net, optimizer)


def test_entries_that_newer_versions_add() -> None:
    saved = saved_by(torch.optim.AdamW)
    for group in saved["param_groups"]:
        group |= {"cautious": True, "initial_lr": 0.1, "name": "all"}
    for state in saved["state"].values():
        state["momentum_of_the_future"] = torch.zeros(3)
    net = model()
    optimizer = AdamW(net.parameters())
    optimizer.load_state_dict(copy.deepcopy(saved))
    train(net, optimizer)
    assert optimizer.state_dict()["param_groups"][0]["initial_lr"] == 0.1
    assert "momentum_of_the_future" in optimizer.state[net[0].weight]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_states_that_are_not_adams(kind: Any) -> None:
    net = model()
    other = kind(net.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    train(net, other)
    optimizer = AdamW(net.parameters())
    train(net, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"checkpoint of Adam or AdamW, got .*without exp_avg"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert optimizer.state[net[0].weight]["step"] == 1


def test_what_8_bits_cannot_do_is_refused_before_anything_is_loaded() -> None:
    net = model()
    saved = saved_by(torch.optim.AdamW, amsgrad=True)
    optimizer = AdamW(net.parameters(), state_dtype="8bit")
    train(net, optimizer)
    with pytest.raises(NotImplementedError, match="amsgrad"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["amsgrad"] is False
    assert optimizer.state[net[0].weight]["step"] == 1
    train(net, optimizer)


# ---------------------------------------------------------------- ours in torch


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_torchs_optimizer_stays_in_its_mode(kind: Any) -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    train(net, optimizer)
    plain = kind(net.parameters(), decoupled_weight_decay=True) if kind is torch.optim.Adam else (
        kind(net.parameters())
    )  # fmt: skip
    before = dict(plain.param_groups[0])
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert plain.param_groups[0].keys() == before.keys()
    for key in MODES:
        assert plain.param_groups[0][key] == before[key], key
    train(net, plain)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}, {}])
def test_through_ours_and_back(options: dict[str, Any]) -> None:
    """What torch's checkpoint says of its mode is still there."""
    net = model()
    plain = torch.optim.AdamW(net.parameters(), **options)
    train(net, plain)
    optimizer = AdamW(net.parameters())
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    train(net, optimizer)
    back = torch.optim.AdamW(net.parameters(), **options)
    back.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for key in MODES:
        assert back.param_groups[0][key] == plain.param_groups[0][key], key
    train(net, back)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("ours_saves", [False, True])
@pytest.mark.parametrize("ours_loads", [False, True])
@pytest.mark.parametrize("options", [{}, {"master": "fp32"}])
def test_by_names_and_flat(
    flat: bool, ours_saves: bool, ours_loads: bool, options: dict[str, Any]
) -> None:
    """As torch.distributed.checkpoint keeps them for FSDP and others."""
    shape = StateDictOptions(flatten_optimizer_state_dict=flat)
    net, other = model(), model()
    if options:
        net, other = net.bfloat16(), other.bfloat16()

    def make(m: nn.Module, ours: bool) -> torch.optim.Optimizer:
        if ours:
            return AdamW(m.parameters(), lr=0.1, **options)
        return torch.optim.AdamW(m.parameters(), lr=0.1)

    def step(m: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        m(torch.ones(2, 16, dtype=m[0].weight.dtype)).float().square().sum().backward()
        optimizer.step()

    one = make(net, ours_saves)
    for _ in range(3):
        step(net, one)
    one.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(net, one, options=shape))
    other.load_state_dict(net.state_dict())
    two = make(other, ours_loads)
    set_optimizer_state_dict(other, two, saved, options=shape)
    assert two.param_groups[0]["lr"] == 0.1
    assert two.state[other[0].weight]["step"].item() == 3
    step(net, one)
    step(other, two)
    tolerance = 0.05 if options and ours_saves != ours_loads else 1e-5
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p.float(), q.float(), rtol=0, atol=tolerance)


# ---------------------------------------------------------------- entries of a group


OF_THE_OPTIMIZER = [
    ("master", "fp32", "split"),
    ("state_dtype", torch.bfloat16, torch.float32),
    ("copies", [torch.zeros(2)], [torch.zeros(2)]),
    ("max_grad_norm", 1.0, 2.0),
    ("stochastic_rounding", True, None),
    ("fused_unscale", False, True),
]


@pytest.mark.parametrize(("name", "_", "value"), OF_THE_OPTIMIZER)
def test_options_of_the_optimizer_are_no_entries_of_a_group(name: str, _: Any, value: Any) -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    given = {name: False if value is True else None}
    with pytest.raises(ValueError, match=f"{name} is an option of the whole optimizer"):
        AdamW([{"params": [p], name: value}], **given)
    optimizer = AdamW([p], **given)
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group({"params": [q], name: value})
    assert len(optimizer.param_groups) == 1
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=name):
        optimizer.step()


@pytest.mark.parametrize(("name", "value", "other"), OF_THE_OPTIMIZER)
def test_a_group_may_say_what_the_optimizer_says(name: str, value: Any, other: Any) -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = AdamW([{"params": [p], name: value}], **{name: value})
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert name not in optimizer.param_groups[0]
    optimizer.param_groups[0][name] = value  # as a wrapper does that keeps groups alike
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0][name] = other  # how states are kept is not a checkpoint's to say
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert name not in optimizer.param_groups[0]
    optimizer.param_groups[0][name] = other
    with pytest.raises(ValueError, match=name):
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("weight_deacy", "weight_decay"), ("weigth_decay", "weight_decay"), ("beta", "betas"),
        ("LR", "lr"), ("amsgard", "amsgrad"), ("decopled", "decoupled"), ("ema_deacy", "ema_decay"),
    ],
)  # fmt: skip
def test_misspelt_options(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown entry '{name}' .*mean '{meant}'"):
        AdamW([{"params": [nn.Parameter(torch.zeros(2))], name: 0.1}])


def test_entries_of_the_users_own() -> None:
    own = {"name": "head", "initial_lr": 0.1, "lr_scale": 0.5, "lr_mult": 2, "layer": 3,
           "max_lr": 1.0, "weight_decay_mult": 0.0, "group_name": "x"}  # fmt: skip
    p = nn.Parameter(torch.zeros(2))
    optimizer = AdamW([{"params": [p], **own}])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert {key: optimizer.param_groups[0][key] for key in own} == own
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=True)


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_modes_that_there_are_not(name: str) -> None:
    with pytest.raises(NotImplementedError, match=name):
        AdamW([{"params": [nn.Parameter(torch.zeros(2))], name: True}])


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"betas": (0.9,)}, "betas of two numbers"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]"),
        ({"lr": -1.0}, "lr"),
        ({"eps": math.nan}, "eps"),
        ({"ema_decay": 1.5}, "ema_decay"),
    ],
)
def test_numbers_of_a_group(entry: dict[str, Any], match: str) -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=match):
        AdamW([{"params": [p], **entry}])
    optimizer = AdamW([p])
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [q], **entry})
    assert len(optimizer.param_groups) == 1
