"""update_scale_ against plain models of torch, Apex and Megatron, over every trace of a length."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from common_checks import FULL

LENGTH = 12 if FULL else 8
INTERVAL = 3


class Ours:
    """The operator's four tensors."""

    def __init__(self, scale: float, hysteresis: int = 1, **options: Any) -> None:
        self.scale = torch.tensor(scale)
        self.tracker = torch.tensor(0, dtype=torch.int32)
        self.hysteresis = torch.tensor(hysteresis, dtype=torch.int32)
        self.counters = torch.zeros(4, dtype=torch.int64)
        self.options = {"growth_interval": INTERVAL, "max_hysteresis": hysteresis, **options}

    def update(self, found_inf: float) -> None:
        torch.ops.fulgurite.update_scale_(
            self.scale, self.tracker, self.hysteresis, self.counters, torch.tensor(found_inf),
            **self.options,
        )  # fmt: skip

    def state(self) -> tuple[float, int, int]:
        return self.scale.item(), int(self.tracker), int(self.hysteresis)


class Apex:
    """apex.contrib's update_scale_hysteresis, as its kernel reads."""

    def __init__(self, scale: float, hysteresis: int) -> None:
        self.scale, self.tracker, self.left, self.full = scale, 0, hysteresis, hysteresis

    def update(self, found: bool) -> None:
        if found:
            self.left -= 1
            self.tracker = 0
            if self.left <= 0:
                self.scale *= 0.5
            return
        self.tracker += 1
        if self.tracker == INTERVAL:
            self.scale *= 2
            self.tracker = 0
        self.left = self.full


class Megatron:
    """DynamicGradScaler of Megatron-LM."""

    def __init__(self, scale: float, hysteresis: int, min_scale: float) -> None:
        self.scale, self.tracker, self.left, self.full = scale, 0, hysteresis, hysteresis
        self.min_scale = min_scale

    def update(self, found: bool) -> None:
        if found:
            self.tracker = 0
            self.left -= 1
            if self.left <= 0:
                self.scale = max(self.scale * 0.5, self.min_scale)
            return
        self.tracker += 1
        if self.tracker == INTERVAL:
            self.tracker = 0
            self.left = self.full
            self.scale *= 2


def compare(ours: Callable[[], Ours], model: Callable[[], Any]) -> None:
    """Every trace of LENGTH, and so every shorter one: its states are compared on the way."""
    for trace in product((False, True), repeat=LENGTH):
        one, other = ours(), model()
        for found in trace:
            one.update(float(found))
            other.update(found)
            assert one.state() == (other.scale, other.tracker, other.left), trace


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_apex(hysteresis: int) -> None:
    compare(lambda: Ours(256.0, hysteresis), lambda: Apex(256.0, hysteresis))


@pytest.mark.parametrize("hysteresis", [1, 2, 3])
def test_megatron(hysteresis: int) -> None:
    compare(
        lambda: Ours(256.0, hysteresis, refill="growth", min_scale=64.0),
        lambda: Megatron(256.0, hysteresis, 64.0),
    )


@pytest.mark.parametrize("factors", [(2.0, 0.5), (1.7, 0.3)])
def test_torch(factors: tuple[float, float]) -> None:
    """torch's own operator, with factors whose products round."""
    growth, backoff = factors
    for trace in product((0.0, 1.0), repeat=LENGTH):
        ours = Ours(1000.0, growth_factor=growth, backoff_factor=backoff)
        scale, tracker = torch.tensor(1000.0), torch.tensor(0, dtype=torch.int32)
        for found in trace:
            ours.update(found)
            torch._amp_update_scale_(scale, tracker, torch.tensor(found), growth, backoff, INTERVAL)
            assert ours.state()[:2] == (scale.item(), tracker.item()), trace


def test_counters() -> None:
    for trace in product((False, True), repeat=6):
        ours = Ours(8.0)
        for i, found in enumerate(trace, 1):
            ours.update(float(found))
            seen = trace[:i]
            in_a_row = next((k for k, f in enumerate(reversed(seen)) if not f), i)
            last = max((k for k, f in enumerate(seen, 1) if f), default=0)
            assert ours.counters.tolist() == [seen.count(False), seen.count(True), in_a_row, last]


@pytest.mark.parametrize("found", [1.0, 2.0, 0.25, float("inf"), float("nan")])
def test_any_nonzero_flag_is_an_overflow(found: float) -> None:
    """Flags that were added up over devices, as torch's operator reads them."""
    ours = Ours(8.0)
    ours.update(found)
    assert ours.scale.item() == 4.0


def test_growth_stops_short_of_infinity() -> None:
    ours = Ours(2.0**127, growth_interval=1)
    ours.update(0.0)
    assert ours.state() == (2.0**127, 0, 1)


def test_ceiling_and_floor() -> None:
    ours = Ours(48.0, growth_interval=1, max_scale=100.0, min_scale=30.0)
    for found, scale in (
        (0.0, 96.0),
        (0.0, 100.0),
        (0.0, 100.0),
        (1.0, 50.0),
        (1.0, 30.0),
        (1.0, 30.0),
    ):
        ours.update(found)
        assert ours.scale.item() == scale


def test_an_infinite_product_meets_the_ceiling() -> None:
    ours = Ours(2.0**127, growth_interval=1, max_scale=3e38)
    ours.update(0.0)
    assert ours.scale.item() == torch.tensor(3e38).item()


def test_growth_is_by_equality() -> None:
    """A tracker that is already past a shortened interval does not grow the scale, as in torch."""
    ours = Ours(8.0)
    ours.tracker.fill_(5)
    ours.update(0.0)
    assert ours.state() == (8.0, 6, 1)
