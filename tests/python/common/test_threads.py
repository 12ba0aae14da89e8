"""A large call runs on every thread that torch was given; a small one on its caller's alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

import fulgurite
from common_checks import threads
from fulgurite.testing.backend import always_spread

ops = torch.ops.fulgurite


def attention() -> Callable[[], object]:
    x = torch.randn(1, 8, 1024, 64)
    return lambda: ops.attention(x, x, x)


def experts() -> Callable[[], object]:
    x, w_up = torch.randn(1024, 256), torch.randn(8, 512, 256)
    w_down = torch.randn(8, 256, 256)
    index = torch.arange(1024, dtype=torch.int32).view(1024, 1) % 8
    weights = torch.ones(1024, 1)
    return lambda: ops.moe_experts(x, index, weights, w_up, w_down)


def adamw() -> Callable[[], object]:
    parameter = torch.nn.Parameter(torch.zeros(1 << 22))
    parameter.grad = torch.ones_like(parameter)
    return fulgurite.optim.AdamW([parameter]).step


@pytest.mark.parametrize("made", [attention, experts, adamw])
def test_other_threads_do_their_share(made: Callable[[], Callable[[], object]]) -> None:
    """Processor time, which does not depend on what else the machine runs."""
    call = made()
    with threads(2):
        call()  # starts the threads
        whole, own = time.process_time(), time.thread_time()
        for _ in range(10):
            call()
        own = time.thread_time() - own
        others = time.process_time() - whole - own
    assert others > 0.2 * own


def test_small_call_stays_on_its_thread() -> None:
    x = torch.randn(1, 1, 4, 8)
    with threads(2):
        assert [row["threads"] for row in fulgurite.explain("attention", x, x, x)] == [1, 1]
    x = torch.randn(1, 2, 4, 8)
    with threads(2), always_spread():
        assert [row["threads"] for row in fulgurite.explain("attention", x, x, x)] == [2, 2]
