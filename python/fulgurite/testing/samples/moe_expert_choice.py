"""Sample calls of expert choice. T tokens, E experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fulgurite.testing.references import moe_expert_choice as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.moe import normal


def moe_route_expert_choice_samples(
    dtype: torch.dtype, device: torch.device, seed: int
) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    for name, T, E, capacity in (
        ("two_each", 12, 6, 4),
        ("odd_sizes", 37, 13, 9),
        ("every_token", 10, 3, 10),
        ("many", 600, 20, 60),
        ("one_expert", 8, 1, 3),
        ("no_room", 5, 4, 0),
        ("no_tokens", 0, 4, 0),
        ("no_experts", 3, 0, 2),
    ):
        yield Sample(name, (normal(generator, dtype, device, T, E), capacity), {})


def moe_route_expert_choice_errors(device: torch.device) -> Iterator[ErrorSample]:
    logits = torch.zeros(5, 3, device=device)
    yield ErrorSample("integers", (logits.int(), 2), {}, TypeError, "logits")
    yield ErrorSample("one_dim", (logits[0], 2), {}, RuntimeError, "logits")
    yield ErrorSample("negative", (logits, -1), {}, ValueError, r"capacity in \[0, 5\], got -1")
    yield ErrorSample("too_many", (logits, 6), {}, ValueError, r"capacity in \[0, 5\], got 6")


OPERATORS = (
    Operator(
        name="moe_route_expert_choice",
        samples=moe_route_expert_choice_samples,
        errors=moe_route_expert_choice_errors,
        reference=reference.moe_route_expert_choice,
        differentiable=(0,),
        exact=True,
        autocast="float32",
    ),
)
