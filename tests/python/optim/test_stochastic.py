"""Stochastic rounding of 16-bit parameters: the words of Philox, unbiased, and replayable."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common_checks import DEVICE, assert_same_bits, scattered, threads
from fulgurite.optim import AdamW
from fulgurite.testing.references.optim import philox_words, round_stochastically
from fulgurite.testing.samples.optim import Lists

LOW = (torch.bfloat16, torch.float16)


def seed_of(seed: int, step: int) -> Tensor:
    return torch.tensor([seed, step])


def run(lists: Lists, seed: Tensor | None, **options: Any) -> list[Tensor]:
    """The parameters after a step; ``copies`` receives their values before rounding."""
    written = {
        name: [t.clone() for t in getattr(lists, name)]
        for name in ("params", "exp_avgs", "exp_avg_sqs", "steps")
    }
    if "params" in options:
        written["params"] = options.pop("params")
    torch.ops.fulgurite.adamw_(*lists.args(**written), seed=seed, **options)
    return written["params"]


def test_philox_is_that_of_the_paper() -> None:
    """Known answers of Random123: the counter and key all zeros, and the digits of π."""
    assert philox_words(0, 0, 0, 4).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
@pytest.mark.parametrize("dtype", LOW)
def test_every_bit_is_the_words(isa: str, dtype: torch.dtype, seed: int) -> None:
    """Values of every size, subnormals and overflows too, against a plain computation."""
    lists = Lists([(1021,), (3, 77)], dtype, DEVICE, 1)
    for p, g in zip(lists.params, lists.grads, strict=True):
        exponents = torch.linspace(-26, 17, p.numel()).reshape(p.shape)
        p.copy_(p.double() * torch.exp2(exponents.double()))
        g.copy_(g.double() * torch.exp2(exponents.double().clamp(max=8)))
    lists.hyper[:, 0] = 0.3
    lists.copies = [torch.empty(p.shape) for p in lists.params]
    new = run(lists, seed_of(seed, 5), keys=[2**32 - 1, 3])
    for p, exact, key in zip(new, lists.copies, (2**32 - 1, 3), strict=True):
        words = [seed % 2**64, 5]
        assert torch.equal(p, round_stochastically(exact, dtype, words, key))
    assert not torch.equal(new[0], lists.copies[0].to(dtype))


@pytest.mark.parametrize("dtype", LOW)
def test_replayed_alone_in_other_lists_and_layouts(isa: str, dtype: torch.dtype) -> None:
    shapes = [(40003,), (6, 35, 4), (1,), (5, 5)]
    lists = Lists(shapes, dtype, DEVICE, 2)
    seed = seed_of(77, 1)
    with threads(1):
        together = run(lists, seed)
    for count in (2, 3):
        with threads(count):
            again = run(lists, seed)
        assert_same_bits(dict(enumerate(again)), dict(enumerate(together)))
    for i in range(len(shapes)):
        one = Lists(shapes, dtype, DEVICE, 2)
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps", "groups"):
            setattr(one, name, [getattr(one, name)[i]])
        assert torch.equal(run(one, seed, keys=[i])[0], together[i])
        if i:
            assert not torch.equal(run(one, seed)[0], together[i]) or shapes[i] == (1,)
    moved = [
        lists.params[0].clone(),
        lists.params[1].permute(1, 2, 0).contiguous().permute(2, 0, 1),
        lists.params[2].clone(),
        scattered(lists.params[3]),
    ]
    for found, expected in zip(run(lists, seed, params=moved), together, strict=True):
        assert torch.equal(found, expected)


def test_seed_step_and_key_each_matter() -> None:
    lists = Lists([(4096,)], torch.bfloat16, DEVICE, 3)
    runs = [
        run(lists, seed_of(1, 1))[0],
        run(lists, seed_of(2, 1))[0],
        run(lists, seed_of(2**32 + 1, 1))[0],
        run(lists, seed_of(1, 2))[0],
        run(lists, seed_of(1, 1), keys=[1])[0],
    ]
    for i, one in enumerate(runs):
        for other in runs[:i]:
            assert 100 < int((one != other).sum()) < 4000


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("dtype", LOW)
def test_unbiased(dtype: torch.dtype, fraction: float) -> None:
    """The share of those that go up is the fraction, within four standard errors."""
    n = 1 << 18
    unit = torch.finfo(dtype).eps
    lists = Lists([(n,)], dtype, DEVICE, 4)
    lists.params = [torch.ones(n, dtype=dtype)]
    lists.grads = [-torch.ones(n, dtype=dtype)]
    lists.exp_avgs, lists.exp_avg_sqs = [torch.zeros(n)], [torch.zeros(n)]
    lists.steps = [torch.zeros(())]
    lists.hyper = torch.tensor([[fraction * unit, 0.9, 0.999, 0.0, 0.0, 0.0]]).double()
    new = run(lists, seed_of(9, 1))[0].double()
    assert set(new.unique().tolist()) == {1.0, 1.0 + unit}
    share = float((new > 1).double().mean())
    assert abs(share - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / n)


@pytest.mark.parametrize("dtype", LOW)
def test_what_sixteen_bits_hold_stays(dtype: torch.dtype) -> None:
    """Every 16-bit number, NaN and infinities included, comes back from a step of nothing."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    lists = Lists([(2**16,)], dtype, DEVICE, 5)
    lists.params = [values]
    lists.grads = [torch.zeros_like(values)]
    lists.exp_avgs, lists.exp_avg_sqs = [torch.zeros(2**16)], [torch.zeros(2**16)]
    lists.hyper[:, 4] = 0.0
    new = run(lists, seed_of(3, 3))[0]
    kept = torch.where(values.isnan(), new.isnan(), new == values)
    assert kept.all()


def test_float32_and_masters_are_left_alone() -> None:
    for dtype, masters in ((torch.float32, False), (torch.bfloat16, True)):
        lists = Lists([(33,)], dtype, DEVICE, 6)
        if masters:
            lists.masters = [lists.params[0].float()]
        one = run(lists, None)
        if masters:
            lists.masters = [lists.params[0].float()]
        assert torch.equal(run(lists, seed_of(1, 1))[0], one[0])


# ---------------------------------------------------------------- the class


def train(
    p: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int, value: float = 1.0
) -> None:
    for _ in range(steps):
        p.grad = torch.full_like(p, value)
        optimizer.step()


def make(seed: int = 0, size: int = 256, **options: Any) -> tuple[nn.Parameter, AdamW]:
    torch.manual_seed(seed)
    p = nn.Parameter(torch.ones(size, dtype=torch.bfloat16))
    settings = {"lr": 1e-5, "weight_decay": 0.0, "stochastic_rounding": True, **options}
    return p, AdamW([p], **settings)


def test_small_steps_arrive_on_average() -> None:
    """1,000 steps of 1e-5 from 1: to nearest none of them happens."""
    p, optimizer = make(size=4096)
    train(p, optimizer, 1000)
    assert float(p.detach().float().mean()) == pytest.approx(0.99, abs=2e-4)


def test_the_seed_is_drawn_once_from_torchs_generator() -> None:
    p, optimizer = make(3)
    after = torch.get_rng_state()
    train(p, optimizer, 20)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(3)
    torch.randint(2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), after)
    q, same = make(3)
    train(q, same, 20)
    assert torch.equal(p, q)
    r, other = make(4)
    train(r, other, 20)
    assert not torch.equal(p, r)
    torch.manual_seed(3)
    AdamW([nn.Parameter(torch.ones(2))])  # draws nothing
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(3).get_state())


@pytest.mark.parametrize("through", ["state_dict", "deepcopy"])
def test_a_checkpoint_continues_the_words(through: str) -> None:
    p, optimizer = make()
    train(p, optimizer, 40)
    q, half = make()
    train(q, half, 25)
    if through == "state_dict":
        r, rest = make(99)
        with torch.no_grad():
            r.copy_(q)
        rest.load_state_dict(copy.deepcopy(half.state_dict()))
    else:
        rest = copy.deepcopy(half)
        r = rest.param_groups[0]["params"][0]
    train(r, rest, 15)
    assert torch.equal(p, r)


def test_a_missing_gradient_shifts_nothing() -> None:
    """Parameters are numbered over all groups, whoever has a gradient."""

    def values(skip: bool) -> Tensor:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.ones(64, dtype=torch.bfloat16)) for _ in range(3)]
        optimizer = AdamW(
            [{"params": params[:1]}, {"params": params[1:]}], lr=1e-4, stochastic_rounding=True
        )
        for _ in range(30):
            for i, p in enumerate(params):
                p.grad = None if skip and i == 1 else torch.ones_like(p)
            optimizer.step()
        return params[2].detach()

    assert torch.equal(values(False), values(True))


def test_checkpoints_with_and_without_rounding() -> None:
    p, optimizer = make()
    train(p, optimizer, 3)
    plain = AdamW([p])
    plain.load_state_dict(optimizer.state_dict())
    assert "rounding_seed" not in plain.param_groups[0]
    torchs = torch.optim.AdamW([p])
    torchs.load_state_dict(optimizer.state_dict())
    train(p, torchs, 1)
    seed = optimizer.param_groups[0]["rounding_seed"]
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["rounding_seed"] == seed
