"""Numbers set in a group after construction: refused by the step, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW

WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("lr", math.nan, ValueError, "lr of at least 0 and finite, got nan"),
    ("lr", -1e-3, ValueError, "lr .* got -0.001"),
    ("lr", math.inf, ValueError, "lr .* got inf"),
    ("lr", torch.tensor(math.nan), ValueError, "lr .* got nan"),
    ("lr", "1", TypeError, "a number lr, got '1'"),
    ("lr", None, TypeError, "a number lr, got None"),
    ("eps", math.nan, ValueError, "eps .* got nan"),
    ("eps", -1.0, ValueError, "eps .* got -1.0"),
    ("weight_decay", math.inf, ValueError, "weight_decay .* got inf"),
    ("betas", (0.9, 1.0), ValueError, r"betas\[1\] in \[0, 1\), got 1.0"),
    ("betas", (math.nan, 0.9), ValueError, r"betas\[0\] .* got nan"),
    ("betas", (0.9,), ValueError, "betas of two numbers"),
    ("betas", ("0.9", 0.9), TypeError, r"a number betas\[0\], got '0.9'"),
    ("ema_decay", 1.0, ValueError, r"ema_decay in \[0, 1\), got 1.0"),
]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("name", "value", "error", "words"), WRONG)
def test_a_step_refuses_them(
    name: str, value: Any, error: type[Exception], words: str, fresh: bool, scaled: bool
) -> None:
    params = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = AdamW(
        [{"params": params[:1]}, {"params": params[1:]}], master="fp32", stochastic_rounding=True
    )
    for param in params:
        param.grad = torch.ones_like(param)
    if not fresh:
        optimizer.step()
    before = {key: dict(value) for key, value in optimizer.state.items()}
    versions = [param._version for param in params]
    rounding = [group["rounding_step"] for group in optimizer.param_groups]
    optimizer.param_groups[1][name] = value
    step: Callable[[], Any] = optimizer.step
    if scaled:
        scaler = LossScaler("cpu", init_scale=1.0)
        scaler.scale(torch.ones(()))
        step = partial(scaler.step, optimizer)
    with pytest.raises(error, match="fulgurite.optim.AdamW: expected " + words):
        step()
    assert [param._version for param in params] == versions
    assert [group["rounding_step"] for group in optimizer.param_groups] == rounding
    assert {key: dict(value) for key, value in optimizer.state.items()} == before


def test_the_operator_refuses_them_too() -> None:
    usual = [1e-3, 0.9, 0.999, 1e-8, 0.01, 0.0]
    names = ("lr", "beta1", "beta2", "eps", "weight_decay", "ema_decay")
    for k, name in enumerate(names):
        for value in (math.nan, math.inf, -0.5):
            hyper = torch.tensor([usual], dtype=torch.float64)
            hyper[0, k] = value
            p, grad, m, v, step = (torch.ones(n) for n in (4, 4, 4, 4, 1))
            with pytest.raises(RuntimeError, match=rf"adamw_: expected {name} .* in hyper\[0\]"):
                torch.ops.fulgurite.adamw_(
                    [p], [grad], [m], [v], [], [], [], [], [step], hyper, [0]
                )
            assert p.tolist() == [1.0] * 4


def test_numbers_of_every_kind_in_a_group() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    ours = AdamW(params[:1])
    theirs = torch.optim.AdamW(params[1:])
    for optimizer, param in ((ours, params[0]), (theirs, params[1])):
        optimizer.param_groups[0].update(lr=1, weight_decay=0, eps=1)
        param.grad = torch.ones(3)
        optimizer.step()
    torch.testing.assert_close(params[0], params[1])


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"stochastic_rounding": True}])
def test_a_step_over_nothing_does_nothing(options: dict[str, Any]) -> None:
    """As torch.optim.AdamW."""
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = AdamW([param], **options)
    optimizer.param_groups.clear()
    optimizer.step()
    assert param.tolist() == [1.0] * 3
    assert not optimizer.state
    assert optimizer.skipped == 0
