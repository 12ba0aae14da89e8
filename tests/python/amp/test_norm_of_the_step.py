"""The norm that a step clips by is that of the gradients that it uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW

SCALERS = [LossScaler, GradScaler]


def make(kind: type[AdamW] = AdamW, **options: Any) -> tuple[nn.Parameter, AdamW]:
    p = nn.Parameter(torch.zeros(100))
    return p, kind([p], lr=0.1, weight_decay=0.0, max_grad_norm=1.0, **options)


def backward(scaler: GradScaler, p: nn.Parameter, norm: float) -> None:
    scaler.scale((p * (norm / 10)).sum()).backward()


def used(p: nn.Parameter, optimizer: AdamW) -> float:
    """The norm of the gradient that the first step used."""
    return optimizer.state[p]["exp_avg"].norm().item() / 0.1


def in_place(p: nn.Parameter) -> None:
    p.grad.mul_(1000.0)


def unseen_by_versions(p: nn.Parameter) -> None:
    p.grad.data.mul_(1000.0)


def another(p: nn.Parameter) -> None:
    p.grad = p.grad * 1000.0


CHANGES = [in_place, unseen_by_versions, another]


def own_hook(p: nn.Parameter, change: Callable[[nn.Parameter], None]) -> tuple[AdamW, Any]:
    _, optimizer = p, AdamW([p], lr=0.1, weight_decay=0.0, max_grad_norm=1.0)
    return optimizer, optimizer.register_step_pre_hook(lambda *_: change(p))


def global_hook(p: nn.Parameter, change: Callable[[nn.Parameter], None]) -> tuple[AdamW, Any]:
    optimizer = AdamW([p], lr=0.1, weight_decay=0.0, max_grad_norm=1.0)
    return optimizer, register_optimizer_step_pre_hook(lambda *_: change(p))


def subclass(p: nn.Parameter, change: Callable[[nn.Parameter], None]) -> tuple[AdamW, Any]:
    class Noisy(AdamW):
        def step(self, closure: Any = None) -> Any:
            change(p)
            return super().step(closure)

    return Noisy([p], lr=0.1, weight_decay=0.0, max_grad_norm=1.0), None


def patch(p: nn.Parameter, change: Callable[[nn.Parameter], None]) -> tuple[AdamW, Any]:
    optimizer = AdamW([p], lr=0.1, weight_decay=0.0, max_grad_norm=1.0)
    step = optimizer.step

    def patched(*args: Any) -> Any:
        change(p)
        return step(*args)

    optimizer.step = patched
    return optimizer, None


@pytest.mark.parametrize("scaler_kind", SCALERS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", [own_hook, global_hook, subclass, patch])
def test_gradients_changed_after_the_scaler_looked(
    scaler_kind: Any, change: Callable[[nn.Parameter], None], place: Any
) -> None:
    p = nn.Parameter(torch.zeros(100))
    optimizer, handle = place(p, change)
    try:
        scaler = scaler_kind("cpu", init_scale=4.0)
        backward(scaler, p, 0.5)
        scaler.step(optimizer)
    finally:
        if handle is not None:
            handle.remove()
    assert optimizer.total_norm.item() == pytest.approx(500.0, rel=1e-6)
    assert used(p, optimizer) == pytest.approx(1.0, rel=1e-4)


def test_a_schedule_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers wrap the step; the scaler's norm is used all the same, not taken twice."""
    p, optimizer = make()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    scaler = LossScaler("cpu", init_scale=4.0)
    for _ in range(2):
        optimizer.zero_grad()
        backward(scaler, p, 500.0)
        calls: list[int] = []
        if optimizer._plan is not None:
            grad_stats = optimizer._plan.grad_stats

            def count(inv: Tensor | None, calls: Any = calls, stats: Any = grad_stats) -> Any:
                calls.append(1)
                return stats(inv)

            monkeypatch.setattr(optimizer._plan, "grad_stats", count)
        scaler.step(optimizer)
        scaler.update()
    assert calls == [1]
    assert optimizer.total_norm.item() == pytest.approx(500.0)


@pytest.mark.parametrize("again", ["alone", "LossScaler", "other LossScaler"])
def test_a_step_that_was_interrupted_leaves_nothing_behind(again: str) -> None:
    p, optimizer = make()
    scaler = LossScaler("cpu", init_scale=8.0)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for interrupt in range(2):
        optimizer.zero_grad()
        backward(scaler, p, 0.25)
        if interrupt:
            handle = optimizer.register_step_pre_hook(stop)
        else:  # in the step itself
            optimizer._numbers, handle = stop, None
        with pytest.raises(KeyboardInterrupt):
            scaler.step(optimizer)
        if handle is None:
            del optimizer._numbers
        else:
            handle.remove()
        assert not hasattr(optimizer, "grad_scale")
        assert not hasattr(optimizer, "found_inf")
    optimizer.zero_grad()
    if again == "alone":
        (p * 100.0).sum().backward()
        optimizer.step()
    else:
        other = scaler if again == "LossScaler" else LossScaler("cpu", init_scale=32.0)
        backward(other, p, 1000.0)
        other.step(optimizer)
        other.update()
    assert optimizer.total_norm.item() == pytest.approx(1000.0)
    assert used(p, optimizer) == pytest.approx(1.0, rel=1e-4)


def test_an_error_in_the_step_under_torchs_scaler() -> None:
    p, optimizer = make()
    scaler = GradScaler("cpu", init_scale=8.0)
    backward(scaler, p, 0.25)
    optimizer.param_groups[0]["betas"] = (0.9,)
    with pytest.raises(ValueError, match="betas of two numbers"):
        scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale")
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    optimizer.zero_grad()
    (p * 100.0).sum().backward()
    optimizer.step()
    assert optimizer.total_norm.item() == pytest.approx(1000.0)


@pytest.mark.parametrize("scaler_kind", SCALERS)
@pytest.mark.parametrize("fused_unscale", [True, False])
def test_gradients_written_after_unscaling_by_hand(scaler_kind: Any, fused_unscale: bool) -> None:
    p, optimizer = make(fused_unscale=fused_unscale)
    scaler = scaler_kind("cpu", init_scale=64.0)
    backward(scaler, p, 0.5)
    scaler.unscale_(optimizer)
    p.grad.mul_(40.0)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.total_norm.item() == pytest.approx(20.0)
    assert used(p, optimizer) == pytest.approx(1.0, rel=1e-4)


def test_several_optimizers_each_by_its_own_norm() -> None:
    pairs = [make() for _ in range(3)]
    scaler = LossScaler("cpu", init_scale=16.0)
    for norm, (p, _) in zip((0.5, 30.0, 7.0), pairs, strict=True):
        backward(scaler, p, norm)
    scaler.unscale_(pairs[1][1])
    for _, optimizer in pairs:
        scaler.step(optimizer)
    scaler.update()
    for norm, (p, optimizer) in zip((0.5, 30.0, 7.0), pairs, strict=True):
        assert optimizer.total_norm.item() == pytest.approx(norm)
        assert used(p, optimizer) == pytest.approx(min(norm, 1.0), rel=1e-4)


def test_one_optimizer_and_several_scalers() -> None:
    p, optimizer = make()
    for scale, norm in ((4.0, 0.5), (1024.0, 50.0), (2.0, 3.0)):
        scaler = LossScaler("cpu", init_scale=scale)
        optimizer.zero_grad()
        backward(scaler, p, norm)
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.total_norm.item() == pytest.approx(norm)


def test_looking_alone_promises_no_step() -> None:
    """What a framework calls by hand."""
    p, optimizer = make()
    scaler = LossScaler("cpu", init_scale=4.0)
    backward(scaler, p, 0.5)
    scaler._check_inf_per_device(optimizer)
    p.grad = torch.full_like(p, 100.0)
    optimizer.step()
    assert optimizer.total_norm.item() == pytest.approx(1000.0)


@pytest.mark.parametrize("scaler_kind", SCALERS)
def test_closures_are_refused_under_a_scaler(scaler_kind: Any) -> None:
    p, optimizer = make()
    scaler = scaler_kind("cpu", init_scale=4.0)
    backward(scaler, p, 0.5)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="closure is not supported under a gradient scaler"):
        scaler.step(optimizer, lambda: 0.0)
    assert torch.equal(p, before)
    p.grad = None
    assert optimizer.step(lambda: (p * 2.0).sum().backward() or 3.0) == 3.0


def test_steps_in_the_backward_itself() -> None:
    """An optimizer for each parameter, stepped as soon as its gradient is there."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizers = {p: AdamW([p], max_grad_norm=1e-3) for p in net.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        p.grad = None

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    for _ in range(2):
        net(torch.ones(2, 4)).square().sum().backward()
    for p, optimizer in optimizers.items():
        assert optimizer.state[p]["step"].item() == 2
        assert optimizer.total_norm.item() > 1e-3


def test_the_first_bad_gradient_in_the_order_of_parameters() -> None:
    """Groups of different modes go to different calls; the index counts as the user does."""
    params = [nn.Parameter(torch.zeros(3)) for _ in range(5)]
    optimizer = AdamW(
        [
            {"params": params[:2]},
            {"params": params[2:3], "maximize": True},
            {"params": params[3:]},
        ],
        max_grad_norm=1.0,
    )
    module = nn.Module()
    module.weights = nn.ParameterList(params)
    for bad, model in ((2, None), (3, module), (0, module), (4, None)):
        scaler = LossScaler("cpu", init_scale=4.0, model=model)
        scaler.scale(torch.zeros(()))
        for p in params:
            p.grad = torch.ones_like(p)
        params[1].grad = None
        params[bad].grad[1] = math.inf
        params[4].grad[2] = math.nan
        scaler.step(optimizer)
        assert scaler.first_bad == bad - (bad > 1)
        assert scaler.first_bad_name == (model and f"weights.{bad}")
        assert optimizer.skipped.item() == 1


def test_gradients_stay_scaled_after_a_fused_step() -> None:
    """What the documentation says first."""
    for kind, after in ((True, 4.0), (False, 1.0)):
        p, optimizer = make(fused_unscale=kind)
        scaler = LossScaler("cpu", init_scale=4.0)
        backward(scaler, p, 10.0)
        scaler.step(optimizer)
        assert torch.equal(p.grad, torch.full_like(p, after))
