"""NaN and infinity reach only the pairs that are kept; rows that keep nothing are clean."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from common_checks import CPU, Results, assert_same_bits, forward_backward
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.testing import assert_accurate, to_float64
from fulgurite.testing.references.attention import attention, attention_naive
from fulgurite.testing.samples.attention import qkv

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
attention_op = torch.ops.fulgurite.attention

Inputs = tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor], dict[str, Any]]


@st.composite
def calls(draw: st.DrawFn) -> Inputs:
    """Inputs, cotangents and a way to hide pairs: mask, causality and windows."""
    dtype = draw(st.sampled_from(DTYPES))
    B, Hkv, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    N, M, D = draw(st.integers(1, 40)), draw(st.integers(1, 80)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    inputs = qkv(generator, dtype, CPU, B=B, Hq=Hkv * group, Hkv=Hkv, N=N, M=M, D=D)
    shape = (B, Hkv * group, N)
    cotangents = tuple(
        torch.randn(size, generator=generator).to(dtype) for size in ((*shape, D), shape)
    )
    kwargs = {
        "mask": draw(st.sampled_from([None, torch.rand(B, 1, N, M, generator=generator) < 0.8])),
        "causal": draw(st.booleans()),
        "align": draw(st.sampled_from(["bottom_right", "top_left"])),
        "window_left": draw(st.sampled_from([-1, 0, 3, 30])),
        "window_right": draw(st.sampled_from([-1, 0, 3])),
    }
    return dict(zip(("query", "key", "value"), inputs, strict=True)), cotangents, kwargs


def poison(tensor: torch.Tensor, number: float, places: list[int]) -> None:
    flat = tensor.view(-1)
    for place in places:
        flat[place % flat.numel()] = number


def reference_results(
    inputs: dict[str, torch.Tensor], cotangents: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
) -> Results:
    wide = {name: to_float64(tensor) for name, tensor in inputs.items()}
    return forward_backward(attention, wide, tuple(map(to_float64, cotangents)), **kwargs)


@given(
    call=calls(),
    where=st.sampled_from(["query", "key", "value", "grad of out", "grad of lse"]),
    places=st.lists(st.integers(0, 10_000), min_size=1, max_size=3),
    number=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_what_is_hidden_never_leaks(
    call: Inputs, where: str, places: list[int], number: float, isa: str
) -> None:
    """Results that a NaN cannot reach by the mathematics are what they are without it.

    The reference computes each pair alone, so with NaN in these places its finite results are
    the ones out of reach. An infinity may reach less than NaN does, never more.
    """
    inputs, cotangents, kwargs = call
    dtype = inputs["query"].dtype
    clean = reference_results(inputs, cotangents, kwargs)
    naive = forward_backward(attention_naive, inputs, cotangents, **kwargs)

    tensors = inputs | {"grad of out": cotangents[0], "grad of lse": cotangents[1]}
    poison(tensors[where], math.nan, places)
    reached = {k: v.isnan() for k, v in reference_results(inputs, cotangents, kwargs).items()}
    poison(tensors[where], number, places)
    actual = forward_backward(attention_op, inputs, cotangents, **kwargs)

    if math.isnan(number):
        for label, places_reached in reached.items():
            assert torch.equal(actual[label].isnan(), places_reached), label
    for label, places_reached in reached.items():
        actual[label] = torch.where(places_reached, clean[label], actual[label].double())
    assert_accurate(actual, clean, naive, dtype, magnitude=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_hidden_from_all_changes_no_bit(dtype: torch.dtype, number: float, isa: str) -> None:
    """Padding: keys that no query sees, and queries that see nothing, may hold anything."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = qkv(generator, dtype, CPU, Hq=4, Hkv=2, N=70, M=150, D=24)
    mask = torch.rand(2, 1, 70, 150, generator=generator) < 0.8
    mask[..., 100:] = False
    mask[:, :, 5:60] = False
    cotangents = tuple(
        torch.randn(size, generator=generator).to(dtype) for size in ((2, 4, 70, 24), (2, 4, 70))
    )
    inputs = {"query": query, "key": key, "value": value}
    clean = forward_backward(attention_op, inputs, cotangents, mask=mask)
    key[:, :, 100:] = number
    value[:, :, 100:] = number
    query[:, :, 5:60] = number
    for cotangent in cotangents:
        cotangent[:, :, 5:60] = number
    assert_same_bits(forward_backward(attention_op, inputs, cotangents, mask=mask), clean)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("N", "M", "kwargs", "empty"),
    [
        (9, 5, {"causal": True}, slice(0, 4)),
        (6, 3, {"window_left": 1, "align": "top_left"}, slice(4, 6)),
        (7, 4, {"mask": torch.zeros(7, 4, dtype=torch.bool)}, slice(0, 7)),
        (3, 0, {}, slice(0, 3)),
        (130, 2, {"causal": True}, slice(0, 128)),
    ],
    ids=["causal", "window", "mask", "no_keys", "whole_tiles"],
)
def test_rows_that_keep_nothing(
    dtype: torch.dtype, N: int, M: int, kwargs: dict[str, Any], empty: slice, isa: str
) -> None:
    """out 0, lse −inf, every gradient 0, whatever cotangent comes in."""
    generator = torch.Generator().manual_seed(0)
    inputs = dict(zip(("query", "key", "value"), qkv(generator, dtype, CPU, N=N, M=M, D=4), strict=True))
    cotangents = (torch.ones(2, 2, N, 4, dtype=dtype), torch.ones(2, 2, N, dtype=dtype))
    cotangents[0][:, :, empty] = math.nan
    cotangents[1][:, :, empty] = math.inf
    results = forward_backward(attention_op, inputs, cotangents, **kwargs)
    out, lse = results["output 0"], results["output 1"]
    assert (out[:, :, empty] == 0).all() and (lse[:, :, empty] == -math.inf).all()
    assert (results["grad of query"][:, :, empty] == 0).all()
    rest = torch.ones(N, dtype=torch.bool)
    rest[empty] = False
    assert lse[:, :, rest].isfinite().all()
    assert all(tensor.isfinite().all() for k, tensor in results.items() if k.startswith("grad"))
