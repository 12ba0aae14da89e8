"""Whether a checkpoint fits an optimizer, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fulgurite.optim._codes import BLOCK
from fulgurite.optim._parts import check_same_parts
from fulgurite.optim._states import MOMENTS

_NUMBERS = (*MOMENTS, "max_exp_avg_sq", "master", "ema")
_CODES = tuple(f"{key}_codes" for key in MOMENTS)
_LARGEST = torch.finfo(torch.float32).max
_SCALES = tuple(f"{key}_scales" for key in MOMENTS)


def check_form(saved: dict[str, Any]) -> None:
    """ValueError unless this is what an optimizer's ``state_dict`` returns."""
    for key, kind in (("state", Mapping), ("param_groups", list | tuple)):
        if not isinstance(saved.get(key), kind):
            raise ValueError(
                "fulgurite.optim.AdamW: expected a checkpoint with 'state' and 'param_groups',"
                f" got {saved.get(key)!r} as {key!r}"
            )
    for group in saved["param_groups"]:
        if not isinstance(group, Mapping) or "params" not in group:
            raise ValueError(
                "fulgurite.optim.AdamW: expected a checkpoint whose param_groups have 'params',"
                f" got {group!r}"
            )


def check_state(index: Any, state: Any, param: Tensor) -> None:
    """ValueError unless a saved state is empty, or Adam's and of a parameter like this one."""
    if not state:
        return
    if not isinstance(state, Mapping):
        raise ValueError(
            f"fulgurite.optim.AdamW: expected a dict as the state of parameter {index},"
            f" got {state!r}"
        )
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    missing = [
        key
        for key in MOMENTS
        if key not in tensors and not {f"{key}_codes", f"{key}_scales"} <= tensors.keys()
    ]
    if not isinstance(state.get("step"), Tensor | int | float):
        missing.append("step")
    if missing:
        raise ValueError(
            "fulgurite.optim.AdamW: expected a checkpoint of Adam or AdamW, got a state without"
            f" {', '.join(missing)}"
        )
    _check_step(index, state["step"])
    shapes = dict.fromkeys((*_NUMBERS, *_CODES), tuple(param.shape))
    shapes |= dict.fromkeys(_SCALES, (-(-param.numel() // BLOCK),))
    for key, shape in shapes.items():
        if key in tensors:
            _check_tensor(index, key, tensors[key], shape)
            check_same_parts(index, key, tensors[key], param)


def _check_step(index: Any, step: Any) -> None:
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(
            f"fulgurite.optim.AdamW: expected one number as step of parameter {index},"
            f" got the shape {tuple(step.shape)}"
        )
    count = step.item() if isinstance(step, Tensor) else step
    if isinstance(count, complex) or not 0 <= count <= _LARGEST or count != int(count):
        raise ValueError(
            f"fulgurite.optim.AdamW: expected a count as step of parameter {index}, got {count}"
        )


def _check_tensor(index: Any, key: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(
            f"fulgurite.optim.AdamW: expected {key} of shape {shape} for parameter {index},"
            f" got {tuple(value.shape)}"
        )
    if key in _CODES and value.dtype != torch.uint8:  # that have been through another optimizer
        if not bool(((value >= 0) & (value < 256)).all()):
            raise ValueError(
                f"fulgurite.optim.AdamW: expected {key} of parameter {index} in 0 … 255,"
                f" got others in {value.dtype}"
            )
    elif key not in (*_CODES, "master") and not value.is_floating_point():
        raise ValueError(
            f"fulgurite.optim.AdamW: expected {key} of parameter {index} in floating point,"
            f" got {value.dtype}"
        )
