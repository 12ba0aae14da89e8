"""Sample calls of the plan and of what moves rows by it.

T tokens, E experts, K experts per token, H width of a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fulgurite.testing.references import moe_plan as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.moe import normal, random_ids


def moe_plan_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    del dtype
    generator = torch.Generator().manual_seed(seed)

    def ids(T: int, K: int, E: int) -> Tensor:
        return torch.randint(-1, E + 1, (T, K), generator=generator).to(device)

    weights = torch.rand(40, 3, generator=generator).mul(8).round().to(device)  # ties
    crowded = ids(40, 3, 4)
    yield Sample("two_each", (ids(9, 2, 5), 5), {})
    yield Sample("weight", (crowded, 4), {"capacity": 9, "drop": "weight", "weights": weights})
    yield Sample("many", (ids(40, 4, 16).int(), 16), {})
    yield Sample("one_expert", (ids(6, 3, 1), 1), {})
    yield Sample("capacity", (crowded, 4), {"capacity": 12})
    yield Sample("choice", (crowded.int(), 4), {"capacity": 11, "drop": "choice"})
    yield Sample(
        "priority",
        (crowded, 4),
        {"capacity": 13, "drop": "priority", "weights": weights.bfloat16()},
    )
    yield Sample("no_room", (ids(5, 2, 3), 3), {"capacity": 0})
    yield Sample("no_tokens", (ids(0, 3, 4), 4), {"capacity": 2, "drop": "choice"})
    yield Sample("no_experts", (ids(3, 2, 4), 0), {})


def moe_plan_errors(device: torch.device) -> Iterator[ErrorSample]:
    ids = torch.zeros(5, 2, dtype=torch.int64, device=device)
    weights = torch.ones(5, 2, device=device)
    yield ErrorSample("floats", (ids.float(), 3), {}, TypeError, "ids")
    yield ErrorSample("weights_dtype", (ids, 3), {"weights": ids}, TypeError, "weights")
    yield ErrorSample("one_dim", (ids[0], 3), {}, RuntimeError, "ids")
    yield ErrorSample("weights_shape", (ids, 3), {"weights": weights[:4]}, RuntimeError, "weights")
    yield ErrorSample("num_experts", (ids, -1), {}, ValueError, "num_experts")
    yield ErrorSample("negative_capacity", (ids, 3), {"capacity": -2}, ValueError, "capacity")
    yield ErrorSample("drop", (ids, 3), {"drop": "last"}, ValueError, "drop")
    yield ErrorSample("priority_without", (ids, 3), {"drop": "priority"}, ValueError, "weights")
    yield ErrorSample("weight_without", (ids, 3), {"drop": "weight"}, ValueError, "weights")


def plan_of(
    generator: torch.Generator, device: torch.device, T: int, K: int, E: int
) -> tuple[Tensor, Tensor]:
    permutation, inverse, _ = reference.moe_plan(random_ids(generator, device, T, K, E, low=-1), E)
    return permutation, inverse


def moe_permute_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    for name, T, K, E, H in (
        ("two_each", 9, 2, 5, 12),
        ("odd_width", 7, 3, 4, 5),
        ("wide", 33, 4, 8, 67),
        ("no_tokens", 0, 2, 3, 4),
        ("no_width", 3, 2, 3, 0),
    ):
        x = normal(generator, dtype, device, T, H)
        yield Sample(name, (x, *plan_of(generator, device, T, K, E)), {})


def moe_permute_errors(device: torch.device) -> Iterator[ErrorSample]:
    x = torch.ones(4, 3, device=device)
    permutation, inverse = plan_of(torch.Generator().manual_seed(0), device, 4, 2, 3)
    outside, swapped = permutation.clone(), permutation.flip(0)
    outside[0] = 8
    cases: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": ((x.int(), permutation, inverse), TypeError, "x"),
        "permutation_dtype": ((x, permutation.long(), inverse), TypeError, "permutation"),
        "inverse_dtype": ((x, permutation, inverse.long()), TypeError, "inverse"),
        "one_dim": ((x[0], permutation, inverse), RuntimeError, "x"),
        "tokens": ((x[:3], permutation, inverse), RuntimeError, "inverse"),
        "length": ((x, permutation[:7], inverse), RuntimeError, "permutation"),
        "outside": ((x, outside, inverse), RuntimeError, "permutation"),
        "not_inverse": ((x, swapped, inverse), RuntimeError, "inverse"),
    }
    for name, (args, error, match) in cases.items():
        yield ErrorSample(name, args, {}, error, match)


def moe_combine_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def call(T: int, K: int, E: int, H: int) -> tuple[Tensor, Tensor]:
        y = normal(generator, dtype, device, T * K, H)
        return y, plan_of(generator, device, T, K, E)[1]

    def weights(T: int, K: int, of: torch.dtype) -> Tensor:
        return torch.rand(T, K, generator=generator).to(device, of)

    yield Sample("weighted", (*call(9, 2, 5, 12), weights(9, 2, wide)), {})
    yield Sample("plain", call(7, 3, 4, 5), {})
    yield Sample("own_dtype", (*call(33, 4, 8, 67), weights(33, 4, dtype)), {})
    yield Sample("no_tokens", (*call(0, 2, 3, 4), weights(0, 2, wide)), {})


def moe_combine_errors(device: torch.device) -> Iterator[ErrorSample]:
    y, weights = torch.ones(8, 3, device=device), torch.ones(4, 2, device=device)
    inverse = torch.arange(8, dtype=torch.int32, device=device).view(4, 2)
    cases: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": ((y.int(), inverse), TypeError, "y"),
        "inverse_dtype": ((y, inverse.long()), TypeError, "inverse"),
        "weights_dtype": ((y, inverse, weights.bfloat16()), TypeError, "weights"),
        "one_dim": ((y[0], inverse), RuntimeError, "y"),
        "rows": ((y[:7], inverse), RuntimeError, "y"),
        "weights_shape": ((y, inverse, weights.T), RuntimeError, "weights"),
        "outside": ((y, inverse + 1), RuntimeError, "inverse"),
        "twice": ((y, inverse.clamp(max=6)), RuntimeError, "inverse"),
    }
    for name, (args, error, match) in cases.items():
        yield ErrorSample(name, args, {}, error, match)


OPERATORS = (
    Operator(
        name="moe_plan",
        samples=moe_plan_samples,
        errors=moe_plan_errors,
        reference=reference.moe_plan,
        dtypes=(torch.float32,),
        exact=True,
    ),
    Operator(
        name="moe_permute",
        samples=moe_permute_samples,
        errors=moe_permute_errors,
        reference=reference.moe_permute,
        differentiable=(0,),
        exact=True,
    ),
    Operator(
        name="moe_combine",
        samples=moe_combine_samples,
        errors=moe_combine_errors,
        reference=reference.moe_combine,
        differentiable=(0, 2),
    ),
)
