"""Optimizers that see a part of a model: ZeroRedundancyOptimizer's shares and FSDP's shards."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW
from fulgurite.optim._states import exact_value
from optim.two_layers import model, train


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_share_of_the_parameters_has_no_norm(one_process: None) -> None:
    """ZeroRedundancyOptimizer gives each rank its own."""
    net = model()
    with pytest.raises(NotImplementedError, match=r"max_grad_norm .*ZeroRedundancyOptimizer"):
        ZeroRedundancyOptimizer(net.parameters(), AdamW, max_grad_norm=1.0)
    optimizer = ZeroRedundancyOptimizer(net.parameters(), AdamW, lr=0.01)
    train(net, optimizer)
    AdamW(net.parameters(), max_grad_norm=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"master": "split"}, {"master": "fp32"}, {"state_dtype": torch.bfloat16},
        {"state_dtype": "8bit"}, {"fused_unscale": False}, {"decoupled": False},
        {"ema_decay": 0.5}, {"stochastic_rounding": True},
    ],
)  # fmt: skip
def test_a_share_of_the_parameters_is_kept_as_asked(
    one_process: None, options: dict[str, Any]
) -> None:
    """ZeroRedundancyOptimizer writes what it is given into the groups, again before every step."""
    net, plain = nn.Linear(64, 128).bfloat16(), nn.Linear(64, 128).bfloat16()
    plain.load_state_dict(net.state_dict())
    torch.manual_seed(0)
    optimizer = ZeroRedundancyOptimizer(net.parameters(), AdamW, lr=0.01, **options)
    torch.manual_seed(0)
    other = AdamW(plain.parameters(), lr=0.01, **options)
    for _ in range(3):
        for module, stepped in ((net, optimizer), (plain, other)):
            stepped.zero_grad()
            module(torch.ones(2, 64, dtype=torch.bfloat16)).square().sum().backward()
            stepped.step()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.optim.state[p].keys() == other.state[q].keys()
    optimizer.consolidate_state_dict()
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    optimizer.load_state_dict(saved)
    optimizer.step()


def test_a_shard_has_no_norm() -> None:
    p = nn.Parameter(torch.zeros(3))
    p._fsdp_flattened = True  # how FSDP marks what it has cut
    AdamW([p])
    with pytest.raises(NotImplementedError, match=r"max_grad_norm .*FSDP"):
        AdamW([p], max_grad_norm=1.0)


# ---------------------------------------------------------------- DTensors


def sharded(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """As FSDP2 makes it: parameters, gradients and states are DTensors."""
    net = model().to(dtype)
    mesh = dist.init_device_mesh("cpu", (1,))
    for layer in net:
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(whole(p), whole(q))


KEPT: list[dict[str, Any]] = [
    {"master": "fp32"}, {"master": "split"}, {"master": "split", "ema_decay": 0.5},
    {"state_dtype": torch.bfloat16}, {"amsgrad": True, "maximize": True}, {"decoupled": False},
    {"stochastic_rounding": True}, {},
]  # fmt: skip


def pair(net: nn.Module, options: dict[str, Any], **more: Any) -> AdamW:
    torch.manual_seed(0)
    return AdamW(net.parameters(), lr=0.01, weight_decay=0.1, **options, **more)


def train_in(dtype: torch.dtype, net: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
        net(x.to(dtype)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}])
def test_shards_step_as_in_torch(one_process: None, options: dict[str, Any]) -> None:
    net, plain = sharded(), sharded()
    optimizer = AdamW(net.parameters(), lr=0.01, **options)
    other = torch.optim.AdamW(plain.parameters(), lr=0.01, fused=True, **options)
    train(net, optimizer, range(4))
    train(plain, other, range(4))
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(whole(p), whole(q), rtol=1e-5, atol=1e-6)
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert type(value) is type(other.state[q][key]), key
    optimizer, other = (
        AdamW(net.parameters(), **options), torch.optim.AdamW(plain.parameters(), **options)
    )  # fmt: skip
    for loaded, saved in ((optimizer, other), (other, optimizer)):
        loaded.load_state_dict(copy.deepcopy(saved.state_dict()))


@pytest.mark.parametrize("options", KEPT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shards_step_as_whole_tensors(
    one_process: None, options: dict[str, Any], dtype: torch.dtype
) -> None:
    net, plain = sharded(dtype), model().to(dtype)
    optimizer, other = pair(net, options), pair(plain, options)
    train_in(dtype, net, optimizer, range(3))
    train_in(dtype, plain, other, range(3))
    assert_same(net, plain)
    with torch.no_grad():  # what is written into parameters is what the next step starts from
        for p in (*net.parameters(), *plain.parameters()):
            p.mul_(0.5)
    train_in(dtype, net, optimizer, range(3, 5))
    train_in(dtype, plain, other, range(3, 5))
    assert_same(net, plain)
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert isinstance(value, DTensor) == (key != "step")
            assert torch.equal(whole(value), other.state[q][key]), key


@pytest.mark.parametrize("options", KEPT)
@pytest.mark.parametrize("distributed", [False, True])
def test_checkpoints_of_shards(
    one_process: None, options: dict[str, Any], distributed: bool
) -> None:
    net, loaded = sharded(torch.bfloat16), sharded(torch.bfloat16)
    one, two = pair(net, options), pair(loaded, options)
    train_in(torch.bfloat16, net, one, range(3))
    loaded.load_state_dict(net.state_dict())
    if distributed:
        saved = get_optimizer_state_dict(net, one)
        set_optimizer_state_dict(loaded, two, saved)
    else:
        two.load_state_dict(copy.deepcopy(one.state_dict()))
    train_in(torch.bfloat16, net, one, range(3, 5))
    train_in(torch.bfloat16, loaded, two, range(3, 5))
    assert_same(net, loaded)


@pytest.mark.parametrize(("first", "second"), [("fp32", "split"), ("split", "fp32")])
def test_masters_of_shards_become_each_other(one_process: None, first: str, second: str) -> None:
    net, loaded = sharded(torch.bfloat16), sharded(torch.bfloat16)
    one, two = pair(net, {"master": first}), pair(loaded, {"master": second})
    train_in(torch.bfloat16, net, one, range(3))
    loaded.load_state_dict(net.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for p, q in zip(net.parameters(), loaded.parameters(), strict=True):
        assert isinstance(two.state[q]["master"], DTensor)
        values = [
            whole(exact_value(p, one.state[p])), whole(exact_value(q, two.state[q]))
        ]  # fmt: skip
        assert torch.equal(*values)
    train_in(torch.bfloat16, loaded, two, range(3, 5))


def test_reloaded_masters_of_shards(one_process: None) -> None:
    for master in ("fp32", "split"):
        net = sharded(torch.bfloat16)
        optimizer = pair(net, {"master": master})
        train_in(torch.bfloat16, net, optimizer, range(2))
        optimizer.reload_masters()
        for p in net.parameters():
            assert torch.equal(whole(exact_value(p, optimizer.state[p])), whole(p).float())


def test_shards_beside_whole_tensors_and_copies(one_process: None) -> None:
    net, alone = sharded(), nn.Parameter(torch.ones(5))
    params = [*net.parameters(), alone]
    copies = [torch.zeros_like(p, dtype=torch.bfloat16, requires_grad=False) for p in params]
    optimizer = AdamW(params, lr=0.01, copies=copies)
    net(torch.ones(2, 16)).sum().backward()
    alone.grad = torch.ones(5)
    optimizer.step()
    for p, c in zip(params, copies, strict=True):
        assert torch.equal(whole(p).bfloat16(), whole(c))


def test_a_gradient_that_is_cut_otherwise(one_process: None) -> None:
    mesh = dist.init_device_mesh("cpu", (1,))
    p = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(4, 4), mesh, [Replicate()])
    q = nn.Parameter(torch.ones(4, 4))
    q.grad = torch.ones(4, 4)
    AdamW([p]).step()
    AdamW([q]).step()
    assert torch.equal(whole(p), q)


@pytest.mark.parametrize("options", [{"max_grad_norm": 1.0}, {"state_dtype": "8bit"}])
def test_what_shards_cannot_do(one_process: None, options: dict[str, Any]) -> None:
    net = sharded()
    with pytest.raises(NotImplementedError, match=f"{next(iter(options))} .*not supported with"):
        AdamW(net.parameters(), **options)


@pytest.mark.parametrize("fused_unscale", [True, False])
def test_shards_under_gradient_scalers(one_process: None, fused_unscale: bool) -> None:
    net, plain = sharded(), model()
    optimizer, other = (
        AdamW(m.parameters(), lr=0.01, fused_unscale=fused_unscale) for m in (net, plain)
    )
    for module, stepped in ((net, optimizer), (plain, other)):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(3):
            stepped.zero_grad()
            loss = module(torch.ones(2, 16)).square().sum() * (math.inf if step == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(stepped)
            scaler.update()
        assert scaler.get_scale() == 4.0
    assert_same(net, plain)
    scaler = LossScaler("cpu")
    scaler.scale(net(torch.ones(2, 16)).sum()).backward()
    before = [whole(p).clone() for p in net.parameters()]
    with pytest.raises(NotImplementedError, match=r"LossScaler: DTensor .*torch.amp.GradScaler"):
        scaler.step(optimizer)
    for p, value in zip(net.parameters(), before, strict=True):
        assert torch.equal(whole(p), value)


def test_checkpoints_of_whole_tensors_are_cut_first(one_process: None) -> None:
    net, plain = sharded(), model()
    optimizer, other = AdamW(net.parameters()), AdamW(plain.parameters())
    train(net, optimizer)
    train(plain, other)
    with pytest.raises(ValueError, match=r"sharded like the parameter, a DTensor .*set_optimizer"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"a whole tensor, got a DTensor"):
        other.load_state_dict(optimizer.state_dict())
    full = get_optimizer_state_dict(plain, other, options=StateDictOptions(full_state_dict=True))
    set_optimizer_state_dict(net, optimizer, full, options=StateDictOptions(full_state_dict=True))
    train(net, optimizer)
    train(plain, other)
    assert_same(net, plain)
