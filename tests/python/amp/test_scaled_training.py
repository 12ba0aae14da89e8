"""What a training run asks of LossScaler: a static scale, floors, names, several optimizers."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from common_checks import DEVICE
from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))


def backward(scaler: GradScaler, net: nn.Module, bad: Tensor | None = None) -> None:
    net.zero_grad()
    scaler.scale(net(torch.ones(2, 16)).square().sum()).backward()
    if bad is not None:
        bad.grad.view(-1)[-1] = math.inf


def step(scaler: GradScaler, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()


def test_a_static_scale_still_skips() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    scaler = LossScaler(
        DEVICE.type, init_scale=128.0, growth_interval=1, min_scale=128.0, max_scale=128.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for i in range(6):
            backward(scaler, net, net[2].bias if i in (1, 2, 5) else None)
            step(scaler, optimizer)
            assert scaler.get_scale() == 128.0
    assert scaler.skipped == 3
    assert optimizer.state[net[2].bias]["step"].item() == 3


def test_a_scale_at_its_floor_warns() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    scaler = LossScaler(DEVICE.type, init_scale=4.0, min_scale=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward(scaler, net, net[0].bias)
        step(scaler, optimizer)
        backward(scaler, net)
        step(scaler, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # from 2 to 1: the floor is reached
        backward(scaler, net, net[0].bias)
        step(scaler, optimizer)
    assert scaler.get_scale() == 1.0
    backward(scaler, net, net[0].bias)
    with pytest.warns(RuntimeWarning, match=r"at its floor of 1\.0 and 2 updates in a row"):
        step(scaler, optimizer)
    assert scaler.get_scale() == 1.0


def test_names_of_what_overflowed() -> None:
    net = model()
    optimizer = AdamW(
        [{"params": [net[2].bias]}, {"params": [net[0].weight, net[0].bias, net[2].weight]}]
    )
    scaler = LossScaler(DEVICE.type, init_scale=4.0, model=net)
    assert scaler.first_bad_name is None
    backward(scaler, net)
    step(scaler, optimizer)
    assert (scaler.first_bad, scaler.first_bad_name) == (-1, None)
    for name, bad in net.named_parameters():
        backward(scaler, net, bad)
        net[0].weight.grad = None if name != "0.weight" else net[0].weight.grad
        step(scaler, optimizer)
        net.zero_grad()
        assert scaler.first_bad_name == name
    again = pickle.loads(pickle.dumps(scaler))
    assert again.first_bad_name is None
    assert again.skipped == 4


@pytest.mark.parametrize("fused_unscale", [True, False])
def test_several_optimizers_of_both_libraries(fused_unscale: bool) -> None:
    """Against GradScaler, an overflow in either half; the scale is shared, the skip is not."""
    nets, scales = [], []
    for kind, first in (
        (LossScaler, lambda p: AdamW(p, fused_unscale=fused_unscale)),
        (GradScaler, lambda p: torch.optim.AdamW(p, fused=True)),
    ):
        net = model()
        scaler = kind(DEVICE.type, init_scale=256.0, growth_interval=2)
        optimizers = [first(net[0].parameters()), torch.optim.SGD(net[2].parameters(), lr=0.01)]
        for i in range(10):
            backward(scaler, net, {3: net[0].bias, 4: net[2].bias, 7: net[0].weight}.get(i))
            step(scaler, *optimizers)
            if isinstance(scaler, LossScaler):
                assert scaler.was_skipped(optimizers[0]) == (i in (3, 7))
                assert scaler.was_skipped(optimizers[1]) == (i == 4)
        nets.append(net)
        scales.append(scaler.get_scale())
    assert scales[0] == scales[1]
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


class Wrapper:
    """What Accelerate and Lightning hand out for an optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


@pytest.mark.parametrize("fused_unscale", [True, False])
def test_a_wrapper_may_ask_whether_its_optimizer_skipped(fused_unscale: bool) -> None:
    net = model()
    scaler = LossScaler(DEVICE.type, init_scale=256.0)
    own = AdamW(net[0].parameters(), fused_unscale=fused_unscale)
    other = torch.optim.SGD(net[2].parameters(), lr=0.01)
    for bad in (None, net[0].bias, net[2].bias, None):
        backward(scaler, net, bad)
        for optimizer in (own, other):
            scaler.step(optimizer)
        for ask in (lambda: None, scaler.update):  # before the update, and after it
            ask()
            for optimizer, part in ((own, net[0]), (other, net[2])):
                skipped = bad is part.bias
                assert scaler.was_skipped(Wrapper(Wrapper(optimizer))) == skipped
                assert scaler.was_skipped(optimizer) == skipped
    assert not scaler.was_skipped(Wrapper(None))


def test_frameworks_that_clip_themselves() -> None:
    """fused_unscale=False: unscale_, clip_grad_norm_, step, as Accelerate and Lightning do. A
    skipped step is then never called, which is how Accelerate sees it.
    """
    nets = []
    for kind, ours in ((LossScaler, True), (GradScaler, True), (GradScaler, False)):
        net = model()
        scaler = kind(DEVICE.type, init_scale=64.0)
        optimizer = (
            AdamW(net.parameters(), fused_unscale=False)
            if ours
            else torch.optim.AdamW(net.parameters(), fused=True)
        )
        taken: list[int] = []
        optimizer.register_step_pre_hook(lambda *_, taken=taken: taken.append(1))
        for i in range(5):
            backward(scaler, net, net[2].bias if i == 2 else None)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            step(scaler, optimizer)
        assert len(taken) == (4 if ours else 5)
        nets.append(net)
    for other in nets[1:]:
        for a, b in zip(nets[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_beyond_float32(dtype: torch.dtype) -> None:
    """Sums of squares that overflow float32 are no overflow: the step is taken, clipped."""
    p = nn.Parameter(torch.zeros(1000, dtype=dtype))
    optimizer = AdamW([p], lr=1.0, weight_decay=0.0, max_grad_norm=1.0)
    scaler = LossScaler(DEVICE.type, init_scale=2.0)
    scaler.scale(torch.ones(()))
    p.grad = torch.full_like(p, 1e38)
    step(scaler, optimizer)
    assert optimizer.skipped.item() == 0
    value = float(torch.tensor(1e38, dtype=dtype))
    assert optimizer.total_norm.item() == pytest.approx(value / 2 * math.sqrt(1000), rel=1e-6)
    m = optimizer.state[p]["exp_avg"]
    assert m.double().norm().item() == pytest.approx(0.1, rel=1e-5)


class LanguageModel(nn.Module):
    """A causal convolution over embedded bytes: enough to learn which byte follows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(32, 48)
        self.mix = nn.Linear(3 * 48, 96)
        self.norm = nn.LayerNorm(96)
        self.head = nn.Linear(96, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        x = nn.functional.pad(self.embed(tokens), (0, 0, 2, 0))
        windows = torch.cat([x[:, 2:], x[:, 1:-1], x[:, :-2]], -1)
        return self.head(self.norm(nn.functional.gelu(self.mix(windows))))


def losses_of(kind: Any, low: bool, steps: int = 100) -> tuple[list[float], Any]:
    """The losses of the steps that were taken; every twelfth gradient is spoilt in float16."""
    net = LanguageModel()
    text = (torch.arange(4096) ** 2 // 7 % 32).view(64, 64)
    options = {"max_grad_norm": 1.0} if kind is LossScaler else {}
    optimizer = AdamW(net.parameters(), lr=5e-3, **options)
    scaler = kind(DEVICE.type, init_scale=2.0**20, growth_interval=25, enabled=low)
    losses: list[float] = []
    attempts = 0
    while len(losses) < steps:
        batch = text[torch.arange(8) * 7 % 64 + len(losses) % 8]
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype=torch.float16, enabled=low):
            logits = net(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        scaler.scale(loss).backward()
        if low and attempts % 12 == 5:
            net.mix.weight.grad[3, 5] = math.nan
        scaler.step(optimizer)
        scaler.update()
        attempts += 1
        if optimizer.skipped.item() == 0:
            losses.append(loss.item())
    return losses, scaler


def test_a_language_model_in_float16_follows_its_float32_curve() -> None:
    """Overflows are forced, and come by themselves from a scale that starts far too high."""
    wide, _ = losses_of(LossScaler, False)
    low, scaler = losses_of(LossScaler, True)
    assert wide[-1] < 0.6 * wide[0]
    assert scaler.skipped >= 8
    for step_of, (a, b) in enumerate(zip(low, wide, strict=True)):
        assert a == pytest.approx(b, rel=0.05), step_of
