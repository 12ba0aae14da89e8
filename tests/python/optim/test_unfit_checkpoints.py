"""Checkpoints that do not fit are refused before anything of them is loaded."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulgurite.optim import AdamW

Options = dict[str, Any]


def trained(options: Options, dtype: torch.dtype = torch.bfloat16) -> AdamW:
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(64, 80, dtype=dtype)),
        nn.Parameter(torch.randn(3).to(dtype)),
    ]
    optimizer = AdamW(params, **options)
    for p in params:
        p.grad = torch.randn(p.shape, dtype=dtype)
    optimizer.step()
    return optimizer


def everything(optimizer: AdamW) -> Any:
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy([params, optimizer.state_dict()])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_refused(optimizer: AdamW, saved: Any, match: str) -> None:
    before = everything(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(saved)
    assert same(everything(optimizer), before)
    optimizer.step()


KEPT: list[Options] = [
    {"amsgrad": True, "ema_decay": 0.5, "master": "fp32"},
    {"amsgrad": True, "ema_decay": 0.5, "master": "split", "state_dtype": torch.bfloat16},
    {"state_dtype": "8bit", "master": "split"},
]

SHAPES: list[Callable[[Tensor], Tensor]] = [
    lambda tensor: tensor[..., :1],
    lambda tensor: tensor[None],
    lambda tensor: tensor.new_zeros(()),
    lambda tensor: tensor.new_zeros(tensor.numel() + 1),
]


@pytest.mark.parametrize("reshape", SHAPES)
@pytest.mark.parametrize("options", KEPT)
@pytest.mark.parametrize("index", [0, 1])
def test_states_of_other_shapes(
    options: Options, reshape: Callable[[Tensor], Tensor], index: int
) -> None:
    saved = trained(options).state_dict()
    for key in saved["state"][index].keys() - {"step"}:
        unfit = copy.deepcopy(saved)
        unfit["state"][index][key] = reshape(unfit["state"][index][key])
        assert_refused(trained(options), unfit, rf"expected {key} of shape .* parameter {index}")


def test_states_of_a_parameter_of_another_shape() -> None:
    """The transposed shape has as many elements."""
    p, q = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(6, 4))
    for kind in (AdamW, torch.optim.AdamW):
        other = kind([q])
        q.grad = torch.ones_like(q)
        other.step()
        with pytest.raises(ValueError, match=r"exp_avg of shape \(4, 6\) .*got \(6, 4\)"):
            AdamW([p]).load_state_dict(other.state_dict())


@pytest.mark.parametrize("wrap", [float, lambda step: torch.tensor([step], dtype=torch.float64)])
@pytest.mark.parametrize("step", [math.inf, -math.inf, math.nan, -1.0, 2.5, 1e300])
def test_steps_that_are_no_count(step: float, wrap: Callable[[float], Any]) -> None:
    optimizer = trained({})
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["step"] = wrap(step)
    assert_refused(
        optimizer, saved, f"count as step of parameter 1, got {step}".replace("+", r"\+")
    )


def test_several_steps_for_one_parameter() -> None:
    optimizer = trained({})
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = torch.ones(2)
    assert_refused(optimizer, saved, "one number as step of parameter 0")


@pytest.mark.parametrize(
    ("unfit", "match"),
    [
        ({}, "expected a checkpoint with 'state' and 'param_groups'"),
        ({"state": {}}, "got None as 'param_groups'"),
        ({"param_groups": [{"params": [0, 1]}]}, "got None as 'state'"),
        ({"state": [], "param_groups": [{"params": [0, 1]}]}, r"got \[\] as 'state'"),
        ({"state": {}, "param_groups": [{"lr": 0.1}]}, "whose param_groups have 'params'"),
        ({"state": {0: 7}, "param_groups": [{"params": [0, 1]}]}, "expected a dict as the state"),
        ({"state": {}, "param_groups": [{"params": [0]}]}, "size of optimizer's group"),
        ({"state": {}, "param_groups": []}, "different number of parameter groups"),
    ],
)
def test_what_is_no_checkpoint(unfit: dict[str, Any], match: str) -> None:
    assert_refused(trained({}), unfit, match)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "ema"])
def test_numbers_that_are_none(key: str) -> None:
    optimizer = trained({"ema_decay": 0.5})
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][key] = saved["state"][0][key].to(torch.complex64)
    assert_refused(optimizer, saved, f"expected {key} of parameter 0 in floating point")


def test_codes_that_are_none() -> None:
    optimizer = trained({"state_dtype": "8bit"})
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg_codes"] = saved["state"][0]["exp_avg_codes"].float() + 200
    assert_refused(optimizer, saved, r"expected exp_avg_codes of parameter 0 in 0 … 255")


@pytest.mark.parametrize("options", [{}, *KEPT])
def test_what_fits(options: Options) -> None:
    """States of others may have any shape; a step is a number or a tensor of one."""
    one, two = trained(options), trained(options)
    saved = copy.deepcopy(one.state_dict())
    saved["state"][0] |= {"n_averaged": torch.tensor(3), "history": torch.zeros(7)}
    saved["state"][0]["step"] = 1
    saved["state"][1]["step"] = torch.ones(1, dtype=torch.float64)
    two.load_state_dict(saved)
    one.step()
    two.step()
    for p, q in zip(one.param_groups[0]["params"], two.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
