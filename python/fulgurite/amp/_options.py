"""Options of a loss scaler: what ``update_scale_`` would refuse is refused where it is given."""

from __future__ import annotations

from typing import Any

import torch

from fulgurite._config import runtime
from fulgurite._numbers import integer, number, optional_number

OWNER = "fulgurite.amp.LossScaler"


def check_scale(name: str, value: Any) -> float:
    """A scale as float32 holds it: above 0, finite."""
    scale = number(OWNER, name, value, above=0)
    rounded = torch.tensor(scale, dtype=torch.float64, device="cpu").float().item()
    if not 0 < rounded < float("inf"):
        raise ValueError(f"{OWNER}: expected {name} in the range of float32, got {value}")
    return scale


def check_options(**options: Any) -> dict[str, Any]:
    """The options as plain numbers; TypeError or ValueError for one that makes no sense."""
    return {name: _check(name, value, options) for name, value in options.items()}


def _check(name: str, value: Any, options: dict[str, Any]) -> Any:
    if name in ("growth_factor", "backoff_factor"):
        return number(OWNER, name, value, above=0)
    if name == "growth_interval":
        return integer(OWNER, name, value, 1)
    if name == "hysteresis":
        return integer(OWNER, name, value, 1, 2**31 - 1)
    if name == "min_scale":
        return number(OWNER, name, value, at_least=0)
    if name == "max_scale":
        at_least = number(OWNER, "min_scale", options["min_scale"], at_least=0)
        return optional_number(OWNER, name, value, at_least=at_least, finite=False)
    names = runtime().choices()["update_scale_.refill"]
    if value not in names:
        expected = " or ".join(repr(known) for known in names)
        raise ValueError(f"{OWNER}: expected {name} {expected}, got {value!r}")
    return value
