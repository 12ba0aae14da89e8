"""What users write into parameters is what the next step starts from, whatever keeps masters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW, _steps
from fulgurite.optim._states import exact_value, follow_parameter

MODES = [
    (torch.bfloat16, "fp32"), (torch.bfloat16, "split"), (torch.float16, "fp32"),
]  # fmt: skip
LR = 2.0**-10


def trained(dtype: torch.dtype, master: str | None, **options: Any) -> tuple[nn.Parameter, AdamW]:
    """A parameter that has a master with digits of its own."""
    p = nn.Parameter(torch.linspace(-2, 2, 300).to(dtype))
    optimizer = AdamW([p], lr=LR, weight_decay=0.0, master=master, **options)
    for step in range(3):
        p.grad = torch.randn(300, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.step()
    return p, optimizer


def value(p: nn.Parameter, optimizer: AdamW) -> Tensor:
    return exact_value(p, optimizer.state[p]).clone()


def half_unit(p: Tensor) -> Tensor:
    """Within this of a parameter lie the numbers that round to it."""
    return p.detach().float().abs() * torch.finfo(p.dtype).eps / 2 + 2.0**-24


def clamp(p: nn.Parameter) -> None:
    p.clamp_(-0.5, 0.5)


def prune(p: nn.Parameter) -> None:
    p.mul_((torch.arange(300) % 2).to(p.dtype))


def initialise(p: nn.Parameter) -> None:
    nn.init.constant_(p, 3.0)


def other_memory(p: nn.Parameter) -> None:
    p.data = torch.full_like(p, 1.5)


def other_memory_twice(p: nn.Parameter) -> None:
    """The second time in the memory of the first, as allocators will have it."""
    for _ in range(2):
        p.data = p.data.clamp(-0.25, 0.25)


def other_tensor(p: nn.Parameter) -> None:
    torch.utils.swap_tensors(p, nn.Parameter(torch.full_like(p, -1.25)))


def load(p: nn.Parameter) -> None:
    module = nn.Module()
    module.p = p
    module.load_state_dict({"p": torch.full((300,), 0.75, dtype=p.dtype)})


WRITES = [clamp, prune, initialise, other_memory, other_memory_twice, other_tensor, load]


@pytest.mark.parametrize(("dtype", "master"), MODES)
@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_the_next_step_starts_from_what_was_written(
    dtype: torch.dtype, master: str, write: Callable[[nn.Parameter], None]
) -> None:
    p, optimizer = trained(dtype, master)
    before = value(p, optimizer)
    write(p)
    written, unwritten = p.detach().clone(), p.detach().float() == before.to(dtype).float()
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(p, written)
    after = value(p, optimizer)
    assert ((after - written.float()).abs() <= half_unit(written)).all()
    assert torch.equal(after[unwritten], before[unwritten])  # keeps the digits that nobody touched


@pytest.mark.parametrize(("dtype", "master"), MODES)
@torch.no_grad()
def test_an_average_and_a_copy_follow_too(dtype: torch.dtype, master: str) -> None:
    low = torch.empty(300, dtype=torch.bfloat16)
    p, optimizer = trained(dtype, master, ema_decay=0.5, copies=[low])
    before = optimizer.state[p]["ema"].clone()
    p.fill_(3.0)
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(low, torch.full_like(low, 3.0))
    assert torch.allclose(optimizer.state[p]["ema"], (before + 3.0) / 2, atol=0.005)


@torch.no_grad()
def test_pruning_beside_a_negative_half() -> None:
    """0 as the upper half of a number and a negative lower half make a NaN, not a number."""
    p, optimizer = trained(torch.bfloat16, "split")
    optimizer.state[p]["master"].fill_(-7)
    p.data.zero_()  # which no version tells of
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.isfinite().all()
    assert value(p, optimizer).isfinite().all()


@pytest.mark.parametrize(("dtype", "master"), MODES)
def test_masters_taken_anew(dtype: torch.dtype, master: str) -> None:
    """Where no version tells, and to the bit."""
    low = torch.zeros(300)
    p, optimizer = trained(dtype, master, copies=[low])
    p.data.copy_(torch.full((300,), 0.3))
    optimizer.reload_masters()
    assert torch.equal(value(p, optimizer), p.detach().float())
    assert torch.equal(low, p.detach().float())
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert (p - 0.3).abs().max() < 0.01


def test_what_versions_do_not_tell_of() -> None:
    """The boundary that the documentation draws."""
    p, optimizer = trained(torch.bfloat16, "fp32")
    before = value(p, optimizer)
    p.data.copy_(torch.full((300,), 0.3))
    p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(value(p, optimizer), before)


@pytest.mark.parametrize(("dtype", "master"), MODES)
@pytest.mark.parametrize("model_first", [True, False])
def test_checkpoints_in_either_order_go_on_exactly(
    dtype: torch.dtype, master: str, model_first: bool
) -> None:
    p, optimizer = trained(dtype, master, ema_decay=0.9)
    weights, saved = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
    q = nn.Parameter(torch.randn(300).to(dtype))
    other = AdamW([q], lr=LR, weight_decay=0.0, master=master, ema_decay=0.9)
    with torch.no_grad():
        if model_first:
            q.copy_(weights)
        other.load_state_dict(saved)
        if not model_first:
            q.copy_(weights)
    for tensor in (p, q):
        tensor.grad = torch.full_like(tensor, 0.125)
    optimizer.step()
    other.step()
    assert torch.equal(value(p, optimizer), value(q, other))
    assert torch.equal(optimizer.state[p]["ema"], other.state[q]["ema"])


@pytest.mark.parametrize(("dtype", "master"), MODES)
def test_what_a_checkpoint_lacks_starts_at_the_next_step(dtype: torch.dtype, master: str) -> None:
    """torch's checkpoint, loaded before the model."""
    p = nn.Parameter(torch.ones(8, dtype=dtype))
    plain = torch.optim.AdamW([p], lr=LR)
    p.grad = torch.ones_like(p)
    plain.step()
    q = nn.Parameter(torch.randn(8).to(dtype))
    optimizer = AdamW([q], lr=LR, weight_decay=0.0, master=master, ema_decay=0.9)
    optimizer.load_state_dict(plain.state_dict())
    with torch.no_grad():
        q.copy_(p)
    q.grad = torch.zeros_like(q)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(q, p)
    assert torch.equal(optimizer.state[q]["ema"], p.detach().float())


@pytest.mark.parametrize("saved", ["fp32", "split", None])
@pytest.mark.parametrize("loaded", ["fp32", "split", None])
def test_from_any_mode_to_any_other(saved: str | None, loaded: str | None) -> None:
    p, one = trained(torch.bfloat16, saved)
    q = nn.Parameter(p.detach().clone())
    other = AdamW([q], lr=LR, weight_decay=0.0, master=loaded)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for tensor in (p, q):
        tensor.grad = torch.full_like(tensor, 0.5)
    one.step()
    other.step()
    kinds = {"fp32": torch.float32, "split": torch.int16}
    master = other.state[q].get("master")
    assert (None if master is None else master.dtype) == kinds.get(loaded or "")
    exact = saved is not None and loaded is not None
    unit = p.detach().float().abs() * 2.0**-7 + 2.0**-20
    distance = (value(p, one) - value(q, other)).abs()
    assert (distance <= (0 if exact else unit)).all()


def test_a_master_that_went_through_torch_is_not_believed() -> None:
    """torch.optim.AdamW keeps the state, rounds it, and takes steps without it."""
    p, optimizer = trained(torch.bfloat16, "fp32", ema_decay=0.9)
    plain = torch.optim.AdamW([p], lr=0.5)
    plain.load_state_dict(optimizer.state_dict())
    p.grad = torch.ones_like(p)
    plain.step()
    moved = p.detach().clone()
    for master in ("fp32", "split"):
        back = AdamW([p], lr=LR, weight_decay=0.0, master=master, ema_decay=0.9)
        back.load_state_dict(plain.state_dict())
        p.grad = torch.zeros_like(p)
        back.step()
        assert (p - moved).abs().max() < 0.05
        assert back.state[p]["ema"].dtype == torch.float32


def test_nothing_is_compared_where_nothing_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def follow(param: Tensor, master: Tensor) -> None:
        seen.append(param.numel())
        follow_parameter(param, master)

    params = [nn.Parameter(torch.randn(n + 1).bfloat16()) for n in range(4)]
    optimizer = AdamW(params, master="fp32")

    def step(*without: int) -> list[int]:
        for i, p in enumerate(params):
            p.grad = None if i in without else torch.ones_like(p)
        seen.clear()
        optimizer.step()
        return sorted(seen)

    step()
    monkeypatch.setattr(_steps, "follow_parameter", follow)
    assert step() == []
    assert step(1, 2) == []  # other lists
    assert step() == []
    with torch.no_grad():
        params[2].add_(1)
    assert step(2) == []
    assert step() == [3]
    assert step() == []
    params[0].data = params[0].data.clone()
    assert step() == [1]


def test_a_parameter_that_changes_its_dtype() -> None:
    p = nn.Parameter(torch.linspace(-1, 1, 64))
    optimizer = AdamW([p], lr=LR, master="fp32")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float32):
        p.data = p.data.to(dtype)
        p.grad = torch.ones_like(p)
        before = p.detach().clone()
        optimizer.step()
        assert ("master" in optimizer.state[p]) == (dtype != torch.float32)
        assert (p.float() - before.float()).abs().max() <= 2 * LR


@given(
    bits=st.integers(0, 0xFFFF),
    digits=st.integers(-0x8000, 0x8000),
    written=st.integers(0, 0xFFFF),
)
def test_a_master_of_any_value(bits: int, digits: int, written: int) -> None:
    """Kept where it rounds to the parameter, either way at a tie; else the parameter's value."""
    high = torch.tensor([bits, written], dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    master = (torch.tensor([bits << 16]) + digits).to(torch.int32).view(torch.float32)
    for p in high:
        own = master.clone()
        follow_parameter(p.view(1), own)
        ties_away = torch.ops.fulgurite.split_master(master)[0][0]
        keeps = bool(master.bfloat16() == p) or bool(ties_away == p)
        expected = master if keeps else p.float().view(1)
        assert torch.equal(own.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_large_parameters_are_compared_in_parts() -> None:
    p = torch.randn(3000, 500).bfloat16()
    master = p.float() * (1 + 2.0**-12)
    p[17:2000].mul_(2)
    expected = torch.where(master.bfloat16() == p, master, p.float())
    follow_parameter(p, master)
    assert torch.equal(master, expected)


@pytest.mark.parametrize("scaler_kind", [LossScaler, torch.amp.GradScaler])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "8bit"])
def test_float16_with_float32_masters_learns(scaler_kind: Any, state_dtype: Any) -> None:
    """Against float32 weights whose gradients are those of float16 ones."""
    torch.manual_seed(0)
    goal = torch.randn(64, 64) / 8
    p = nn.Parameter(torch.zeros(64, 64, dtype=torch.float16))
    options = {"lr": 1e-2, "max_grad_norm": 1.0, "state_dtype": state_dtype}
    optimizer = AdamW([p], master="fp32", **options)
    scaler = scaler_kind("cpu", init_scale=2.0**20, growth_interval=50)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (p.float() - goal).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
    master = optimizer.state[p]["master"]
    assert master.dtype == torch.float32
    assert torch.equal(master.half(), p)
    assert scaler.get_scale() < 2.0**20  # it overflowed, and went on


def test_float16_steps_are_those_of_float32_weights() -> None:
    start = torch.randn(1000)
    wide, narrow = nn.Parameter(start.half().float()), nn.Parameter(start.half())
    one = AdamW([wide], lr=1e-4)
    other = AdamW([narrow], lr=1e-4, master="fp32")
    for step in range(20):
        grad = torch.randn(1000, generator=torch.Generator().manual_seed(step)).half()
        wide.grad, narrow.grad = grad.float(), grad
        one.step()
        other.step()
    assert torch.equal(other.state[narrow]["master"], wide)
    assert torch.equal(narrow, wide.half())


def test_a_compiled_step_follows_too() -> None:
    p, optimizer = trained(torch.bfloat16, "fp32")
    step = torch.compile(optimizer.step, backend="eager")
    p.grad = torch.zeros_like(p)
    step()
    with torch.no_grad():
        p.fill_(3.0)
    step()
    assert (p - 3.0).abs().max() < 0.02
