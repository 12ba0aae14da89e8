"""The grid of options, dtypes and devices that torch tests its own AdamW and Adam on.

Every combination that torch's optimizer database names for the two, their float64 trajectories
against ours, and those that raise.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulgurite.optim import AdamW
from ulp_distance import ulps

# The database's inputs: each changes a few of the defaults.
INPUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "other lr": {"lr": 0.01},
    "weight decay": {"weight_decay": 0.1},
    "no weight decay": {"weight_decay": 0.0},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "amsgrad": {"weight_decay": 0.1, "amsgrad": True},
    "tensor lr": {"lr": torch.tensor(0.001), "amsgrad": True},
    "large betas": {"betas": (0.99, 0.9999), "eps": 1e-3},
    "small betas": {"betas": (0.3, 0.5), "lr": 0.02},
    "no averages": {"betas": (0.0, 0.0), "eps": 1e-2, "lr": 0.02},
}
KINDS = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}
SHAPES = [(2, 3), (7,), (), (1,), (0,), (4, 5, 6)]


class Problem:
    """The same parameters and gradients for two optimizers, in two groups."""

    def __init__(self, kind: str, options: dict[str, Any], dtype: torch.dtype, **torchs: Any):
        self.ours, self.plain = self.parameters(dtype), self.parameters(dtype)
        weight_decay = options.get("weight_decay", 0.01 if kind == "AdamW" else 0.0)
        own = {**options, "weight_decay": weight_decay}
        if isinstance(options.get("lr"), Tensor):  # torch serves it on the CPU in this one way
            torchs = {"fused": True}
        self.optimizers = (
            AdamW(self.groups(self.ours), decoupled=kind == "AdamW", **own),
            KINDS[kind](self.groups(self.plain), **own, **torchs),
        )

    @staticmethod
    def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
        generator = torch.Generator().manual_seed(3)
        return [
            nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
            for shape in SHAPES
        ]

    @staticmethod
    def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": params[:3]}, {"params": params[3:], "lr": 0.004}]

    def step(self, t: int) -> None:
        for params, optimizer in zip((self.ours, self.plain), self.optimizers, strict=True):
            generator = torch.Generator().manual_seed(100 + t)
            for i, p in enumerate(params):
                grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
                p.grad = None if i == 1 and t % 3 == 1 else grad
            optimizer.step()

    def pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """(name, ours, torch's) of parameters and states."""
        ours, plain = self.optimizers
        found = []
        for p, q in zip(self.ours, self.plain, strict=True):
            found.append(("p", p.detach(), q.detach()))
            assert ours.state[p].keys() == plain.state[q].keys()
            found += [(key, ours.state[p][key], plain.state[q][key]) for key in ours.state[p]]
        return found


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
@pytest.mark.parametrize(("name", "kind"), list(product(INPUTS, KINDS)))
def test_float64(name: str, kind: str, implementation: str) -> None:
    torchs = {"fused": implementation == "fused", "foreach": implementation == "foreach"}
    problem = Problem(kind, INPUTS[name], torch.float64, **torchs)
    for t in range(20):
        problem.step(t)
    for key, ours, plain in problem.pairs():
        assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-14), key


@pytest.mark.parametrize(("name", "kind"), list(product(INPUTS, KINDS)))
def test_float32(name: str, kind: str) -> None:
    """m within 3 ulp (40 where decay is added to the gradient), v within 40, after every step."""
    problem = Problem(kind, INPUTS[name], torch.float32, foreach=True)
    start = [p.detach().clone() for p in problem.ours]
    for t in range(30):
        problem.step(t)
        bounds = {"exp_avg": 3 if kind == "AdamW" else 40, "exp_avg_sq": 40, "max_exp_avg_sq": 40}
        for key, ours, plain in problem.pairs():
            if key in bounds and ours.numel():
                assert ulps(ours, plain) <= bounds[key], (key, t)
    for p, q, before in zip(problem.ours, problem.plain, start, strict=True):
        size = torch.maximum(p.detach().abs(), before.abs()).clamp(min=0.02)
        assert ((p - q).detach().abs() <= 4e-5 * size).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in INPUTS if name != "no averages"])
def test_sixteen_bits_are_closer_to_float64_than_torch(name: str, dtype: torch.dtype) -> None:
    """torch keeps and computes 16-bit parameters' states in 16 bits. (Without averages every update
    is the learning rate with a sign, and one rounding, the same each time, decides.)
    """
    errors = []
    for which in (0, 1):
        squares, count = 0.0, 0
        problem = Problem("AdamW", INPUTS[name], dtype, foreach=True)
        exact = Problem("AdamW", INPUTS[name], torch.float64)
        for low, wide in zip(problem.ours + problem.plain, exact.ours + exact.plain, strict=True):
            wide.data.copy_(low.data)
        for t in range(30):
            problem.step(t)
            exact.step(t)
        params = (problem.ours, problem.plain)[which]
        for p, q in zip(params, exact.ours, strict=True):
            squares += float((p.detach().double() - q.detach()).square().sum())
            count += p.numel()
        errors.append((squares / count) ** 0.5)
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.full
@pytest.mark.parametrize("name", INPUTS)
def test_a_thousand_steps(name: str) -> None:
    problem = Problem("AdamW", INPUTS[name], torch.float32, foreach=True)
    exact = Problem("AdamW", INPUTS[name], torch.float64, foreach=True)
    for wide, low in zip(exact.ours + exact.plain, problem.ours + problem.plain, strict=True):
        wide.data.copy_(low.data)
    for t in range(1000):
        problem.step(t)
        exact.step(t)
    for i, shape in enumerate(SHAPES):
        if shape in ((), (1,), (0,)):  # one element is no sample
            continue
        ours = (problem.ours[i].double() - exact.ours[i]).square().mean().sqrt()
        plain = (problem.plain[i].double() - exact.plain[i]).square().mean().sqrt()
        assert ours <= 1.3 * plain, shape
