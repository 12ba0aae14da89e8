"""Sample calls of random features.

B batch, H heads, N positions, D width, m rows of the projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fulgurite.testing.references import favor as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.attention_cache import offsets
from fulgurite.testing.samples.linear import pack_errors
from fulgurite.testing.samples.moe import normal


def favor_features_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def call(
        name: str,
        B: int,
        H: int,
        N: int,
        D: int,
        m: int,
        *,
        is_query: bool = False,
        of: torch.dtype = dtype,
        lengths: tuple[int, ...] | None = None,
        transposed: bool = False,
        **kwargs: Any,
    ) -> Sample:
        x = normal(generator, dtype, device, B, N, H, D).transpose(1, 2)
        projection = normal(generator, of, device, m, D)
        kwargs["is_query"] = is_query
        if lengths is not None:
            kwargs["cu_seqlens"] = offsets(device, torch.int32, *lengths)
        return Sample(name, (x if transposed else x.contiguous(), projection), kwargs)

    yield call("query", 2, 3, 10, 8, 12, is_query=True)
    yield call("packed_keys", 1, 2, 22, 5, 7, lengths=(5, 0, 2, 12), transposed=True)
    yield call("keys", 2, 2, 9, 8, 20, of=wide)
    yield call("hyperbolic_query", 1, 2, 7, 6, 9, is_query=True, kind="hyperbolic", eps=0.0)
    yield call("hyperbolic_keys", 2, 1, 7, 6, 40, kind="hyperbolic", transposed=True)
    yield call("packed_query", 1, 2, 9, 4, 6, is_query=True, lengths=(3, 4), eps=0.01)
    yield call("wide", 1, 1, 30, 70, 140, of=wide)
    yield call("pieces", 1, 2, 1100, 2, 3)
    yield call("one_position", 2, 40, 1, 16, 33)
    yield call("one_of_each", 1, 1, 1, 1, 1)
    yield call("no_positions", 2, 2, 0, 4, 5)
    yield call("no_heads", 2, 0, 3, 4, 5, is_query=True)
    yield call("no_rows", 1, 2, 3, 4, 0)
    yield call("no_sequences", 1, 2, 4, 3, 5, lengths=())


def favor_features_errors(device: torch.device) -> Iterator[ErrorSample]:
    x, projection = torch.ones(2, 3, 6, 4, device=device), torch.ones(5, 4, device=device)
    cases: dict[str, tuple[tuple[torch.Tensor, ...], dict[str, Any], type[Exception], str]] = {
        "integers": ((x.int(), projection), {}, TypeError, "x of dtype"),
        "projection_dtype": ((x, projection.double()), {}, TypeError, "projection of x's dtype"),
        "three_dims": ((x[0], projection), {}, RuntimeError, r"x of shape \[B, H, N, D\]"),
        "no_width": ((x[..., :0], projection[:, :0]), {}, RuntimeError, "D >= 1"),
        "projection_dims": ((x, projection[0]), {}, RuntimeError, r"projection of shape \[m, D\]"),
        "width": ((x, projection[:, :3]), {}, RuntimeError, r"projection of shape \[m, 4\]"),
        "kind": ((x, projection), {"kind": "cosine"}, ValueError, "'positive' or 'hyperbolic'"),
        "eps": ((x, projection), {"eps": -1.0}, ValueError, "eps finite and >= 0"),
    }
    for name, (args, kwargs, error, match) in cases.items():
        yield ErrorSample(name, args, {"is_query": True} | kwargs, error, match)
    for sample in pack_errors((x, projection), (x[:1], projection), 6):
        kwargs = sample.kwargs | {"is_query": False}
        yield ErrorSample(sample.name, sample.args, kwargs, sample.error, sample.match)


OPERATORS = (
    Operator(
        name="favor_features",
        samples=favor_features_samples,
        errors=favor_features_errors,
        reference=reference.favor_features,
        differentiable=(0, 1),
        constants=True,
        autocast="float32",
    ),
)
