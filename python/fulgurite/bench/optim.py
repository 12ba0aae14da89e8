"""AdamW against torch's fused and default ones, alone and as the pipeline of a clipped step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.bench.harness import Case
from fulgurite.optim import AdamW


def _parameters(count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for _ in range(count):
        parameter = torch.randn(size, generator=generator).requires_grad_()
        parameter.grad = torch.randn(size, generator=generator)
        parameters.append(parameter)
    return parameters


def _step(count: int, size: int, baseline: str, **options: Any) -> Case:
    ours = AdamW(_parameters(count, size), lr=1e-3)
    plain = torch.optim.AdamW(_parameters(count, size), lr=1e-3, **options)
    return Case("step", f"{count} × {size}", baseline, ours.step, plain.step)


def _clipped(count: int, size: int) -> Case:
    ours = AdamW(_parameters(count, size), lr=1e-3, max_grad_norm=1.0)
    parameters = _parameters(count, size)
    plain = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        plain.step()

    run: Callable[[], Any] = ours.step
    return Case("clip + step", f"{count} × {size}", "clip_grad_norm_, fused", run, step)


def cases(quick: bool) -> Iterator[Case]:
    """Few large, many small and very many tiny tensors."""
    million = 1 << 20
    for count, size in (
        ((4, million), (200, 1024)) if quick else ((32, million), (500, 16384), (2000, 1024))
    ):
        yield _step(count, size, "fused=True", fused=True)
        yield _step(count, size, "default")
        yield _clipped(count, size)
