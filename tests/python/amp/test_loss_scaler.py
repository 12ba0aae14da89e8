"""fulgurite.amp.LossScaler in place of torch.amp.GradScaler, with either library's optimizers."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from common_checks import DEVICE
from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW
from fulgurite.testing.backend import kernels

OPTIMIZERS: dict[str, Any] = {
    "ours": AdamW,
    "ours_unfused": lambda p: AdamW(p, fused_unscale=False),
    "torch": torch.optim.AdamW,
    "torch_fused": lambda p: torch.optim.AdamW(p, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))


def loss_of(net: nn.Module, seed: int, overflow: bool = False) -> Tensor:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    loss = net(x).square().sum()
    return loss * math.inf if overflow else loss


def train(
    scaler: GradScaler, make: Any, trace: tuple[bool, ...], explicit: bool = False
) -> tuple[nn.Sequential, list[float]]:
    net = model()
    optimizer = make(net.parameters())
    scales = []
    for step, overflow in enumerate(trace):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step, overflow)).backward()
        if explicit:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return net, scales


TRACE = (False, True, False, False, False, True, True, False, False, False)
OPTIONS: dict[str, Any] = {"init_scale": 1024.0, "growth_interval": 3}


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_same_training_as_gradscaler(optimizer: str, explicit: bool) -> None:
    make = OPTIMIZERS[optimizer]
    ours, our_scales = train(LossScaler(DEVICE.type, **OPTIONS), make, TRACE, explicit)
    plain, scales = train(GradScaler(DEVICE.type, **OPTIONS), make, TRACE, explicit)
    assert our_scales == scales
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(p.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("scaler", [GradScaler, LossScaler])
def test_unscaling_inside_the_step_is_the_training_without_a_scale(scaler: Any) -> None:
    """A power of two as scale leaves no trace, clipping included."""
    scaled, plain = model(), model()
    clipped = AdamW(scaled.parameters(), max_grad_norm=0.5)
    reference = AdamW(plain.parameters(), max_grad_norm=0.5)
    grad_scaler = scaler(DEVICE.type, init_scale=2.0**12)
    for step in range(5):
        clipped.zero_grad()
        grad_scaler.scale(loss_of(scaled, step)).backward()
        grad_scaler.step(clipped)
        grad_scaler.update()
        reference.zero_grad()
        loss_of(plain, step).backward()
        reference.step()
        assert clipped.total_norm.item() == reference.total_norm.item()
        assert clipped.skipped.item() == 0
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_happened() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    scaler = LossScaler(DEVICE.type, init_scale=8.0)
    assert (scaler.skipped, scaler.first_bad, scaler.total_norm) == (0, -1, None)
    for overflow in (False, True, True):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, 0)).backward()
        net[0].weight.grad = None  # so the last bias is the third gradient
        if overflow:
            net[2].bias.grad[5] = math.nan
        norm = torch.stack([p.grad.double().norm() for p in list(net.parameters())[1:]]).norm() / (
            scaler.get_scale()
        )
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.skipped.item() == overflow
        if not overflow:
            assert scaler.total_norm.item() == pytest.approx(norm.item(), rel=1e-12)
    assert (scaler.skipped, scaler.skipped_in_a_row, scaler.last_skipped) == (2, 2, 3)
    assert scaler.first_bad == 2
    assert optimizer.state[net[2].bias]["step"].item() == 1


def test_one_pass_serves_scaler_and_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer takes the norm that the scaler found, and only for that step."""

    def passes() -> int:
        return int(kernels()["amp_grad_stats"]["calls"])

    net = model()
    optimizer = AdamW(net.parameters(), max_grad_norm=0.5)
    scaler = LossScaler(DEVICE.type, init_scale=8.0)
    scaler.scale(loss_of(net, 0)).backward()
    before = passes()
    scaler.step(optimizer)
    assert passes() == before + 1
    first = optimizer.total_norm.item()
    for p in net.parameters():
        p.grad.mul_(3.0)
    optimizer.step()
    assert passes() == before + 2
    assert optimizer.total_norm.item() == pytest.approx(3 * 8 * first, rel=1e-6)


def test_several_optimizers_share_a_scale() -> None:
    net = model()
    first, second = AdamW(net[0].parameters()), torch.optim.SGD(net[2].parameters(), lr=0.1)
    scaler = LossScaler(DEVICE.type, init_scale=8.0)
    scaler.scale(loss_of(net, 0)).backward()
    net[0].bias.grad[0] = math.inf
    before = net[2].weight.detach().clone()
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert first.skipped.item() == 1
    assert not torch.equal(net[2].weight, before)
    assert scaler.skipped == 1


@pytest.mark.filterwarnings("ignore:.*at its floor")
def test_hysteresis_floor_and_ceiling() -> None:
    scaler = LossScaler(
        DEVICE.type, init_scale=8.0, growth_interval=1, hysteresis=2, min_scale=4.0, max_scale=16.0
    )
    trace = (True, True, True, True, False, False, False, True, True)
    _, scales = train(scaler, AdamW, trace)
    assert scales == [8.0, 4.0, 4.0, 4.0, 8.0, 16.0, 16.0, 16.0, 8.0]


@pytest.mark.parametrize(("refill", "last"), [("clean", 8.0), ("growth", 4.0)])
def test_refill(refill: str, last: float) -> None:
    scaler = LossScaler(DEVICE.type, init_scale=8.0, hysteresis=2, refill=refill)
    _, scales = train(scaler, AdamW, (True, False, True))
    assert scales[-1] == last


def test_states_go_both_ways() -> None:
    ours, plain = LossScaler(DEVICE.type, **OPTIONS), GradScaler(DEVICE.type, **OPTIONS)
    train(ours, AdamW, TRACE[:5])
    train(plain, AdamW, TRACE[:5])
    assert plain.state_dict().items() <= ours.state_dict().items()
    into_torch, into_ours = GradScaler(DEVICE.type), LossScaler(DEVICE.type, hysteresis=3)
    into_torch.load_state_dict(ours.state_dict())
    assert into_torch.state_dict() == plain.state_dict()
    into_ours.load_state_dict(plain.state_dict())
    assert plain.state_dict().items() <= into_ours.state_dict().items()
    assert into_ours.state_dict()["hysteresis"] == 3


@pytest.mark.parametrize("started", [False, True])
def test_a_loaded_or_pickled_scaler_continues(started: bool) -> None:
    options = OPTIONS | {"hysteresis": 2, "refill": "growth", "min_scale": 16.0}
    whole = LossScaler(DEVICE.type, **options)
    train(whole, AdamW, TRACE)
    part = LossScaler(DEVICE.type, **options)
    train(part, AdamW, TRACE[:6])
    loaded = LossScaler(DEVICE.type)
    if started:
        train(loaded, AdamW, TRACE[:2])
    loaded.load_state_dict(part.state_dict())
    for other in (loaded, pickle.loads(pickle.dumps(part))):
        train(other, AdamW, TRACE[6:])
        assert other.state_dict() == whole.state_dict()
        assert other.skipped == TRACE.count(True)


def test_a_disabled_scaler_passes_through() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    scaler = LossScaler(DEVICE.type, enabled=False)
    loss = loss_of(net, 0)
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.state[net[0].weight]["step"].item() == 1
    assert (scaler.state_dict(), scaler.skipped, scaler.get_scale()) == ({}, 0, 1.0)
    assert not scaler.was_skipped(optimizer)


def test_gradscalers_own_errors() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    scaler = LossScaler(DEVICE.type)
    with pytest.raises(AssertionError, match="scale"):
        scaler.step(optimizer)
    scaler.scale(loss_of(net, 0)).backward()
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.update()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(optimizer)


def test_a_new_scale() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    scaler = LossScaler(DEVICE.type)
    scaler.scale(loss_of(net, 0)).backward()
    scaler.step(optimizer)
    scaler.update(128.0)
    assert scaler.get_scale() == 128.0
    scaler.scale(loss_of(net, 1)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 128.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hysteresis": 0}, "hysteresis"),
        ({"refill": "never"}, "refill"),
        ({"min_scale": -1.0}, "min_scale"),
        ({"refill": "never"}, "expected refill 'clean' or 'growth', got 'never'"),
        ({"min_scale": 2.0, "max_scale": 1.0}, "max_scale"),
        ({"max_scale": float("nan")}, "max_scale"),
    ],
)
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LossScaler(DEVICE.type, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_numbers_that_are_set_later(value: float) -> None:
    scaler = LossScaler(DEVICE.type, init_scale=4.0)
    scaler.scale(torch.ones((), device=DEVICE))
    before = scaler.state_dict()
    for call, name in (
        (scaler.set_growth_factor, "growth_factor"),
        (scaler.set_backoff_factor, "backoff_factor"),
        (scaler.update, "new_scale"),
    ):
        with pytest.raises(ValueError, match=f"LossScaler: expected {name} above 0 and finite"):
            call(value)
    for name in ("growth_factor", "backoff_factor"):
        with pytest.raises(ValueError, match=f"LossScaler: expected {name} above 0 and finite"):
            scaler.load_state_dict({**before, "scale": 8.0, name: value})
    for wrong, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"LossScaler: expected .*growth_interval"):
            scaler.set_growth_interval(wrong)  # type: ignore[arg-type]
        with pytest.raises(error, match=r"LossScaler: expected .*hysteresis"):
            scaler.load_state_dict({**before, "scale": 8.0, "hysteresis": wrong})
    assert scaler.state_dict() == before


def test_a_scaler_that_is_off_looks_at_no_number_of_torchs() -> None:
    """Nor does torch's."""
    LossScaler(DEVICE.type, init_scale=0.0, growth_factor=1.0, growth_interval=0, enabled=False)


def test_sparse_gradients_of_torchs_optimizers() -> None:
    """Duplicate rows add up before they are judged."""
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=1.0)
    scaler = LossScaler(DEVICE.type, init_scale=2.0)
    before = embedding.weight.detach().clone()
    scaler.scale(embedding(torch.tensor([1, 1])).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    expected = before.clone()
    expected[1] -= 2.0
    assert torch.equal(embedding.weight, expected)
    assert scaler.total_norm.item() == pytest.approx(math.sqrt(8))


def test_float16_learns_through_overflows() -> None:
    """A small network under float16 autocast with far too large a first scale, against float32."""
    torch.manual_seed(3)
    x = torch.randn(64, 16)
    y = torch.tanh(x @ torch.randn(16, 8))
    final = {}
    for low in (False, True):
        net = model()
        optimizer = AdamW(net.parameters(), lr=1e-2, max_grad_norm=1.0)
        scaler = LossScaler(DEVICE.type, init_scale=2.0**24, enabled=low)
        taken = 0
        while taken < 120:
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, dtype=torch.float16, enabled=low):
                loss = (net(x) - y).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            taken += 1 - int(optimizer.skipped)
        final[low] = loss.item()
        if low:
            assert scaler.skipped > 0
            assert scaler.get_scale() < 2.0**24
    assert final[True] == pytest.approx(final[False], rel=0.05)
