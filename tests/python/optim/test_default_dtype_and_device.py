"""torch's default dtype and device belong to the user's own tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


ELSEWHERE = [
    lambda: default_dtype(torch.float64),
    lambda: default_dtype(torch.bfloat16),
    lambda: default_dtype(torch.float16),
    lambda: default_device("meta"),
    lambda: torch.device("meta"),
]
KINDS: list[dict[str, Any]] = [
    {},
    {"state_dtype": "8bit", "master": "split"},
    {"state_dtype": torch.bfloat16, "master": "fp32", "ema_decay": 0.9, "amsgrad": True},
    {"stochastic_rounding": True, "copies": True},
    {"fused_unscale": False, "master": "fp32"},
]


def run(options: dict[str, Any], scaler_kind: Any) -> list[Tensor]:
    """All that training leaves behind, through a checkpoint in the middle."""
    torch.manual_seed(0)
    values = torch.linspace(-1, 1, 5000, dtype=torch.float32, device="cpu")
    params = [nn.Parameter(values.bfloat16()), nn.Parameter(values[:7].clone())]
    copies = [torch.zeros_like(p, requires_grad=False) for p in params]
    options = {**options, **({"copies": copies} if "copies" in options else {})}
    optimizer = AdamW(params, lr=0.01, max_grad_norm=1.0, **options)
    scaler = scaler_kind("cpu", init_scale=8.0)
    for step in range(4):
        for p in params:
            p.grad = torch.full_like(p, 4.0 if step != 2 else float("inf"))
        params[1].grad = params[1].grad if step else None
        scaler.scale(values.sum())
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = AdamW(params, lr=0.01, max_grad_norm=1.0, **options)
            optimizer.load_state_dict(saved)
            if isinstance(scaler, LossScaler):
                scaler.load_state_dict(copy.deepcopy(scaler.state_dict()))
                assert (scaler.skipped, scaler.first_bad) == (0, -1)
    optimizer.reload_masters()
    states = [value for p in params for value in optimizer.state[p].values()]
    return [*params, *copies, *states, optimizer.total_norm, optimizer.skipped]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("scaler_kind", [LossScaler, torch.amp.GradScaler])
def test_training_is_the_same(elsewhere: Any, options: dict[str, Any], scaler_kind: Any) -> None:
    expected = run(options, scaler_kind)
    with elsewhere():
        found = run(options, scaler_kind)
    for a, b in zip(expected, found, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize(("saved", "loaded"), [("8bit", None), (None, "8bit")])
def test_checkpoints_of_other_states(elsewhere: Any, saved: Any, loaded: Any) -> None:
    def moments() -> list[Tensor]:
        p = nn.Parameter(torch.linspace(-1, 1, 5000, dtype=torch.float32, device="cpu"))
        one, other = AdamW([p], state_dtype=saved), AdamW([p], state_dtype=loaded)
        p.grad = torch.sin(p.detach() * 9)
        one.step()
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        other.step()
        return list(other.state[p].values())

    expected = moments()
    with elsewhere():
        found = moments()
    for a, b in zip(expected, found, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_scaler_alone(elsewhere: Any) -> None:
    with elsewhere():
        scaler = LossScaler("cpu", init_scale=8.0, hysteresis=2)
        scaler.scale(torch.ones((), dtype=torch.float32, device="cpu"))
        p = nn.Parameter(torch.ones(3, dtype=torch.float32, device="cpu"))
        plain = torch.optim.SGD([p], lr=0.1)
        with pytest.raises(AssertionError, match="No inf checks"):
            scaler.step(plain)
        p.grad = torch.full_like(p, float("nan"))
        scaler = LossScaler("cpu", init_scale=8.0, hysteresis=2)
        scaler.scale(torch.ones((), dtype=torch.float32, device="cpu"))
        scaler.step(plain)
        scaler.update()
        assert (scaler.skipped, scaler.first_bad, scaler.get_scale()) == (1, 0, 8.0)
        assert scaler.total_norm.dtype == torch.float64
