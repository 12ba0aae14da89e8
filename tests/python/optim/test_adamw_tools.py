"""AdamW under what torch offers around optimizers: schedules, averages, checkpoints, compilers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from common_checks import DEVICE
from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "split": {"master": "split", "ema_decay": 0.9},
    "fp32": {"master": "fp32", "amsgrad": True},
    "bf16": {"state_dtype": torch.bfloat16, "stochastic_rounding": True},
    "8bit": {"state_dtype": "8bit", "master": "split"},
}


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 8)).to(dtype)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> Tensor:
    for step in steps:
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = net(x.to(next(net.parameters()).dtype)).float().square().sum()
        loss.backward()
        optimizer.step()
    return loss.detach()


def assert_equal_models(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", OPTIONS)
def test_distributed_checkpoints(kind: str, tmp_path: Any) -> None:
    """torch.distributed.checkpoint, which names states by parameters, in one process."""
    dtype = torch.float32 if kind == "plain" else torch.bfloat16
    whole, parts, loaded = model(dtype), model(dtype), model(dtype)
    torch.manual_seed(1)
    train(whole, AdamW(whole.parameters(), **OPTIONS[kind]), range(6))
    torch.manual_seed(1)
    one = AdamW(parts.parameters(), **OPTIONS[kind])
    train(parts, one, range(4))
    state = {"model": parts.state_dict(), "optimizer": get_optimizer_state_dict(parts, one)}
    dcp.save(state, checkpoint_id=tmp_path)

    two = AdamW(loaded.parameters(), **OPTIONS[kind])
    into = {"model": loaded.state_dict(), "optimizer": get_optimizer_state_dict(loaded, two)}
    dcp.load(into, checkpoint_id=tmp_path)
    loaded.load_state_dict(into["model"])
    set_optimizer_state_dict(loaded, two, into["optimizer"])
    train(loaded, two, range(4, 6))
    assert_equal_models(loaded, whole)


@pytest.mark.parametrize("average", ["mean", "ema"])
def test_averaged_models(average: str) -> None:
    nets = []
    for kind in (AdamW, torch.optim.AdamW):
        net = model()
        options = {} if kind is AdamW else {"fused": True}
        optimizer = kind(net.parameters(), lr=1e-2, **options)
        multi_avg_fn = get_ema_multi_avg_fn(0.9) if average == "ema" else None
        averaged = AveragedModel(net, multi_avg_fn=multi_avg_fn)
        schedule = SWALR(optimizer, swa_lr=1e-3, anneal_epochs=4)
        for step in range(8):
            train(net, optimizer, range(step, step + 1))
            averaged.update_parameters(net)
            schedule.step()
        nets.append(averaged.module)
    assert_equal_models(*nets)


def test_own_averages_are_those_of_averaged_models() -> None:
    """state["ema"] follows the rule of get_ema_multi_avg_fn, from the first value on."""
    net = model()
    optimizer = AdamW(net.parameters(), ema_decay=0.9)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(net)  # the first update copies
    for step in range(5):
        train(net, optimizer, range(step, step + 1))
        averaged.update_parameters(net)
    for p, a in zip(net.parameters(), averaged.module.parameters(), strict=True):
        assert torch.allclose(optimizer.state[p]["ema"], a, rtol=1e-6, atol=1e-7)


SCHEDULES: dict[str, Any] = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.7**t),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rate", [0.01, torch.tensor(0.01)])
def test_schedules(schedule: str, rate: float | Tensor) -> None:
    """OneCycleLR moves the momentum too, which lies in betas."""
    nets = []
    for kind in (AdamW, torch.optim.AdamW):
        net = model()
        options = {} if kind is AdamW else {"fused": True}
        optimizer = kind(net.parameters(), lr=copy.deepcopy(rate), **options)
        scheduler = SCHEDULES[schedule](optimizer)
        for step in range(10):
            train(net, optimizer, range(step, step + 1))
            scheduler.step()
        nets.append(net)
    assert_equal_models(*nets)


def test_a_schedule_that_waits_for_skipped_steps() -> None:
    net = model()
    optimizer = AdamW(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    scaler = LossScaler(DEVICE.type, init_scale=4.0)
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(net(torch.ones(1, 64)).sum()).backward()
        if step in (1, 4):
            net[0].bias.grad[0] = torch.nan
        scaler.step(optimizer)
        assert scaler.was_skipped(optimizer) == (step in (1, 4))
        scaler.update()
        if not scaler.was_skipped(optimizer):
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5**4
    assert optimizer.state[net[0].bias]["step"].item() == 4


def test_step_hooks_may_change_the_gradients() -> None:
    net, plain = model(), model()
    ours = AdamW(net.parameters(), max_grad_norm=1e9)
    torchs = torch.optim.AdamW(plain.parameters(), fused=True)

    def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad = p.grad * 0.5

    ours.register_step_pre_hook(halve)
    torchs.register_step_pre_hook(halve)
    train(net, ours, range(4))
    train(plain, torchs, range(4))
    assert_equal_models(net, plain)


def test_training_inside_the_backward_pass() -> None:
    """One optimizer per parameter, stepped by a hook as soon as its gradient is there."""
    net, plain = model(), model()
    optimizers = {p: AdamW([p], lr=1e-2) for p in net.parameters()}

    def update(p: nn.Parameter) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(update)
    for step in range(4):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(step))
        net(x).square().sum().backward()
    train(plain, AdamW(plain.parameters(), lr=1e-2), range(4))
    assert_equal_models(net, plain)


@pytest.mark.parametrize("nesting", [True, False])
def test_gradients_are_as_they_were(nesting: bool) -> None:
    """The step reads gradients, it writes none; also under inference mode's tensors."""
    net = model()
    optimizer = AdamW(net.parameters(), max_grad_norm=0.01)
    train(net, optimizer, range(1))
    before = [p.grad.clone() for p in net.parameters()]
    if nesting:
        optimizer.step(lambda: 1.0)
    else:
        optimizer.step()
    for p, grad in zip(net.parameters(), before, strict=True):
        assert torch.equal(p.grad, grad)
