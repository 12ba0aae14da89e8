"""Plans beyond the generated checks: who is dropped, against a model that compares every pair.

T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import DEVICE, assert_same_bits, scattered, threads

NAN, INF = float("nan"), float("inf")
AWKWARD = [NAN, INF, -INF, 0.0, -0.0, 0.5, 0.5, 1.0, -1.0]
DROPS = ("token", "choice", "weight", "priority")


def service_values(experts: np.ndarray, E: int, drop: str, weights: np.ndarray) -> np.ndarray:
    """What assignments (T·K) are served by, falling; NaN ranks lowest."""
    T, K = experts.shape
    if drop == "token":
        return np.zeros(T * K)
    if drop == "choice":
        return np.tile(-np.arange(K, dtype=float), T)
    if drop == "weight":
        return weights.ravel()
    real = np.where(experts < E, weights, NAN)
    return np.repeat([np.fmax.reduce(row) for row in real], K)


def model(
    ids: np.ndarray, E: int, capacity: int, drop: str, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(permutation, inverse, offsets): kept is whom fewer than ``capacity`` others go before."""
    experts = np.where((ids >= 0) & (ids < E), ids, E)
    flat, n = experts.ravel(), experts.size
    value = service_values(experts, E, drop, weights)
    nan, index = np.isnan(value), np.arange(n)
    larger = (value[:, None] > value) | (~nan[:, None] & nan)
    equal = (value[:, None] == value) | (nan[:, None] & nan)
    before = (larger | (equal & (index[:, None] < index))) & (flat[:, None] == flat)
    kept = np.where((before.sum(0) < capacity) & (flat < E), flat, E)
    permutation = np.argsort(kept, kind="stable")
    inverse = np.where(kept < E, np.argsort(permutation), -1)
    return permutation, inverse.reshape(ids.shape), np.searchsorted(np.sort(kept), range(E + 1))


def assert_equals_model(plan: tuple[Tensor, Tensor, Tensor], *arguments: Any) -> None:
    for actual, expected in zip(plan, model(*arguments), strict=True):
        np.testing.assert_array_equal(actual.numpy(), expected)


@given(
    seed=st.integers(0, 10_000),
    T=st.integers(0, 30),
    K=st.integers(1, 5),
    E=st.integers(0, 6),
    data=st.data(),
    drop=st.sampled_from(DROPS),
    wide=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_plan(
    seed: int,
    T: int,
    K: int,
    E: int,
    data: st.DataObject,
    drop: str,
    wide: bool,
    dtype: torch.dtype,
) -> None:
    capacity = data.draw(st.integers(0, 1 + 2 * T * K // max(E, 1)))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-2, E + 2, (T, K), generator=generator)
    picks = torch.randint(0, len(AWKWARD), (T, K), generator=generator)
    weights = torch.tensor(AWKWARD)[picks].to(dtype)
    given_ids = scattered(ids if wide else ids.int())
    plan = F.moe_plan(given_ids, E, capacity, drop, scattered(weights))
    assert_equals_model(plan, ids.numpy(), E, capacity, drop, weights.double().numpy())


def test_who_is_dropped() -> None:
    """Every token wants expert 0, second choices are first choices of the next token."""
    ids = torch.tensor([[1, 0], [0, 1], [0, 2], [2, 0]])
    weights = torch.tensor([[0.5, 0.4], [0.6, 0.1], [0.6, 0.9], [0.2, 0.7]])

    def kept(drop: str) -> list[list[bool]]:
        _, inverse, offsets = F.moe_plan(ids, 3, 2, drop, weights)
        assert offsets.tolist() == [0, 2, 4, 6]
        result: list[list[bool]] = inverse.ge(0).tolist()
        return result

    T, F_ = True, False
    assert kept("token") == [[T, T], [T, T], [F_, T], [T, F_]]
    assert kept("choice") == [[T, F_], [T, T], [T, T], [T, F_]]
    assert kept("weight") == [[T, F_], [T, T], [F_, T], [T, T]]
    assert kept("priority") == [[T, F_], [F_, T], [T, T], [T, T]]


def test_rows_of_an_expert_stay_in_assignment_order() -> None:
    weights = torch.tensor([[0.1], [0.9], [0.5], [0.7]])
    permutation, inverse, offsets = F.moe_plan(
        torch.zeros(4, 1, dtype=torch.int32), 1, 3, "weight", weights
    )
    assert permutation.tolist() == [1, 2, 3, 0]
    assert inverse.tolist() == [[-1], [0], [1], [2]]
    assert offsets.tolist() == [0, 3]


def test_what_is_dropped_contributes_nothing() -> None:
    """A weight of NaN beside a dropped row, too: its gradient is 0."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[0.5], [NAN], [0.25], [1.0]], dtype=torch.float64, requires_grad=True)
    ids = torch.zeros(4, 1, dtype=torch.int64)
    permutation, inverse, _ = F.moe_plan(ids, 1, 3, "weight", weights)
    y = F.moe_combine(F.moe_permute(x, permutation, inverse), inverse, weights)
    kept = torch.tensor([True, False, True, True])
    torch.testing.assert_close(y[kept], (x * weights)[kept])
    assert y[~kept].eq(0).all()
    grad_x, grad_weights = torch.autograd.grad(y.sum(), (x, weights))
    assert grad_x[~kept].eq(0).all()
    assert grad_weights[~kept].eq(0).all()
    torch.testing.assert_close(grad_weights[kept], x.sum(1, keepdim=True)[kept])


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_long_plans(drop: str, dtype: torch.dtype) -> None:
    """Of several groups of streams, with sentinels; for any number of threads."""
    T, K, E, capacity = 20_001, 5, 7, 9_000
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-1, E + 2, (T, K), generator=generator)
    ids[:, 0].clamp_(max=2)  # some experts overflow, others do not
    weights = torch.rand(T, K, generator=generator).mul(1000).round()
    plans = []
    for count in (1, 2, 3):
        with threads(count):
            plans.append(F.moe_plan(ids.to(dtype), E, capacity, drop, weights))
    for plan in plans[1:]:
        assert_same_bits(dict(enumerate(plan)), dict(enumerate(plans[0])))
    permutation, inverse, offsets = plans[0]
    flat = torch.where((ids < 0) | (ids >= E), E, ids).flatten()
    assert torch.equal(offsets.diff(), torch.bincount(flat, minlength=E)[:E].clamp(max=capacity))
    taken = torch.where(inverse.flatten() >= 0, flat, E)
    order = torch.argsort(taken, stable=True)
    assert torch.equal(permutation.long(), order)
    assert torch.equal(
        inverse.flatten().long(), torch.argsort(order).where(taken < E, torch.tensor(-1))
    )
    values = {
        "token": torch.zeros(T * K),
        "choice": -torch.arange(K).repeat(T),
        "weight": weights.flatten(),
        "priority": weights.where((ids >= 0) & (ids < E), -1).max(1).values.repeat_interleave(K),
    }[drop]
    for e in range(E):
        rows = torch.where(flat == e)[0]
        first = rows[torch.argsort(values[rows], descending=True, stable=True)][:capacity]
        assert torch.equal(torch.where(taken == e)[0], first.sort().values)


def test_without_a_capacity_nothing_is_dropped() -> None:
    ids = torch.randint(-1, 4, (50, 3), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(50, 3)
    plain = F.moe_plan(ids, 4)
    for drop in DROPS:
        for capacity in (-1, 150, 1 << 40):
            plan = F.moe_plan(ids, 4, capacity, drop, weights)
            assert_same_bits(dict(enumerate(plan)), dict(enumerate(plain)))


def test_two_to_the_31_assignments_are_too_many() -> None:
    """By shapes alone: each tensor has one element of memory, or none."""
    T, K = 1 << 16, 1 << 15

    def of(*shape: int, dtype: torch.dtype = torch.int32, device: str = "meta") -> Tensor:
        return torch.zeros((1,) * len(shape), dtype=dtype, device=device).expand(shape)

    rows, floats = of(T * K, 1, dtype=torch.float32), {"dtype": torch.float32}
    calls: list[Callable[[], Any]] = [
        lambda: F.moe_plan(of(T, K), 3),
        lambda: F.moe_plan(of(T, K, dtype=torch.int64, device=DEVICE), 3),
        lambda: F.moe_route(of(1 << 28, 8, **floats), 8),
        lambda: F.moe_permute(of(T, 1, **floats), of(T * K), of(T, K)),
        lambda: F.moe_combine(rows, of(T, K)),
        lambda: F.moe_experts(
            of(T, 4, **floats),
            of(T, K),
            of(T, K, **floats),
            of(3, 8, 4, **floats),
            of(3, 4, 4, **floats),
        ),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"fewer than 2\^31 assignments"):
            call()
    assert F.moe_plan(of(T - 1, K), 3)[0].numel() == (1 << 31) - K
    assert F.moe_route(of((1 << 28) - 1, 8, **floats), 8)[1].numel() == (1 << 31) - 8
