"""NaN and infinity reach only the pairs that are kept; rows that keep nothing are clean."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common_checks import DEVICE, Results, forward_backward, threads
from fulgurite.testing import assert_accurate, to_float64
from fulgurite.testing.references.attention import (
    PAIRWISE_LIMIT,
    attention,
    attention_naive,
)
from fulgurite.testing.samples.attention import qkv

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
attention_op = torch.ops.fulgurite.attention

Cotangents = tuple[torch.Tensor, torch.Tensor]

any_call = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 1000),
        "B": st.integers(1, 2),
        "Hkv": st.integers(1, 2),
        "group": st.integers(1, 2),
        "N": st.integers(1, 40),
        "M": st.integers(1, 70),
        "D": st.integers(1, 8),
        "masked": st.booleans(),
        "causal": st.booleans(),
        "align": st.sampled_from(["bottom_right", "top_left"]),
        "window_left": st.sampled_from([-1, 0, 3, 30]),
        "window_right": st.sampled_from([-1, 0, 3]),
    }
)


def tensors_of(
    call: dict[str, Any],
) -> tuple[dict[str, torch.Tensor], Cotangents, dict[str, Any]]:
    """Inputs, cotangents and what hides pairs: mask, causality and windows."""
    generator = torch.Generator().manual_seed(call["seed"])
    sizes = {name: call[name] for name in ("B", "Hkv", "N", "M", "D")}
    Hq = call["Hkv"] * call["group"]
    query, key, value = qkv(generator, call["dtype"], DEVICE, Hq=Hq, **sizes)
    assert query.numel() * call["M"] <= PAIRWISE_LIMIT, "the reference would let NaN out"
    cotangents = (torch.randn(query.shape, generator=generator).to(call["dtype"]),
                  torch.randn(query.shape[:3], generator=generator).to(call["dtype"]))  # fmt: skip
    hiding = {k: call[k] for k in ("causal", "align", "window_left", "window_right")}
    if call["masked"]:
        shape = (call["B"], 1, call["N"], call["M"])
        hiding["mask"] = torch.rand(shape, generator=generator) < 0.8
    return {"query": query, "key": key, "value": value}, cotangents, hiding


def poison(tensor: torch.Tensor, number: float, places: list[int]) -> None:
    flat = tensor.view(-1)
    for place in places:
        flat[place % flat.numel()] = number


def reference_results(
    inputs: dict[str, torch.Tensor], cotangents: Cotangents, kwargs: dict[str, Any]
) -> Results:
    wide = {name: to_float64(tensor) for name, tensor in inputs.items()}
    with threads(1):
        return forward_backward(attention, wide, tuple(map(to_float64, cotangents)), **kwargs)


@given(
    call=any_call,
    where=st.sampled_from(["query", "key", "value", "grad of out", "grad of lse"]),
    places=st.lists(st.integers(0, 10_000), min_size=1, max_size=3),
    number=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_what_is_hidden_never_leaks(
    call: dict[str, Any], where: str, places: list[int], number: float, isa: str
) -> None:
    """Results that a NaN cannot reach by the mathematics are what they are without it.

    The reference computes each pair alone, so with NaN in these places its finite results are
    the ones out of reach. An infinity may reach less than NaN does, never more.
    """
    inputs, cotangents, kwargs = tensors_of(call)
    clean = reference_results(inputs, cotangents, kwargs)
    with threads(1):
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
    assert_accurate(actual, clean, naive, call["dtype"], magnitude=3.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_padding_may_hold_anything(dtype: torch.dtype, number: float, isa: str) -> None:
    """Keys that no query sees, and queries that see nothing, change no result.

    Bits may change: tiles with such numbers take a route of their own.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = qkv(generator, dtype, DEVICE, Hq=4, Hkv=2, N=70, M=150, D=24)
    mask = torch.rand(2, 1, 70, 150, generator=generator) < 0.8
    mask[..., 100:] = False
    mask[:, :, 5:60] = False
    cotangents = (torch.randn(2, 4, 70, 24, generator=generator).to(dtype),
                  torch.randn(2, 4, 70, generator=generator).to(dtype))  # fmt: skip
    inputs = {"query": query, "key": key, "value": value}
    clean = reference_results(inputs, cotangents, {"mask": mask})
    naive = forward_backward(attention_naive, inputs, cotangents, mask=mask)
    key[:, :, 100:] = number
    value[:, :, 100:] = number
    query[:, :, 5:60] = number
    for cotangent in cotangents:
        cotangent[:, :, 5:60] = number
    actual = forward_backward(attention_op, inputs, cotangents, mask=mask)
    assert_accurate(actual, clean, naive, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("N", "M", "seen", "kwargs"),
    [
        (1, 4, 1, {"causal": True, "align": "top_left"}),
        (1, 9, 5, {"window_right": 4, "align": "top_left"}),
        (1, 140, 129, {"window_right": 128, "align": "top_left"}),
        (12, 12, 5, {"chunk_size": 5}),
        (200, 200, 33, {"chunk_size": 33}),
        (300, 300, 129, {"chunk_size": 129}),
        (3, 9, 3, {"causal": True, "align": "top_left"}),
    ],
)
def test_keys_behind_those_in_reach_may_hold_anything(
    dtype: torch.dtype,
    number: float,
    N: int,
    M: int,
    seen: int,
    kwargs: dict[str, Any],
    isa: str,
) -> None:
    """Where all rows end at an odd key, the one behind it is in its pair of operands."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = qkv(generator, dtype, DEVICE, Hq=2, Hkv=1, N=N, M=M, D=16)
    rows = slice(0, min(N, seen))

    def results() -> list[torch.Tensor]:
        wanted = query.clone().requires_grad_()
        out, lse = attention_op(wanted, key, value, **kwargs)
        (grad,) = torch.autograd.grad(out[:, :, rows].float().sum(), wanted)
        return [x[:, :, rows].detach() for x in (out, lse, grad)]

    key[:, :, seen:], value[:, :, seen:] = 0, 0
    clean = results()
    key[:, :, seen:], value[:, :, seen:] = number, number
    for actual, expected in zip(results(), clean, strict=True):
        torch.testing.assert_close(actual, expected)


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
    inputs = dict(
        zip(("query", "key", "value"), qkv(generator, dtype, DEVICE, N=N, M=M, D=4), strict=True)
    )
    cotangents = (torch.ones(2, 2, N, 4, dtype=dtype), torch.ones(2, 2, N, dtype=dtype))
    cotangents[0][:, :, empty] = math.nan
    cotangents[1][:, :, empty] = math.inf
    results = forward_backward(attention_op, inputs, cotangents, **kwargs)
    out, lse = results["output 0"], results["output 1"]
    assert (out[:, :, empty] == 0).all()
    assert (lse[:, :, empty] == -math.inf).all()
    assert (results["grad of query"][:, :, empty] == 0).all()
    rest = torch.ones(N, dtype=torch.bool)
    rest[empty] = False
    assert lse[:, :, rest].isfinite().all()
    assert all(tensor.isfinite().all() for k, tensor in results.items() if k.startswith("grad"))
