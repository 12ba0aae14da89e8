"""Rows with scores so large that lse has no digits left for the logarithm of their sum.

Scores are rounded before softmax sees them, so the reference is that of the rounded ones: products
here are exact, and their sum with what is added is rounded as the operator rounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fulgurite
import fulgurite.nn.functional as F
from common_checks import DEVICE, Results, assert_same_bits, forward_backward, threads
from fulgurite.testing import to_float64
from fulgurite.testing.references.attention import attention, query_positions
from second_derivatives import cotangents_for, noise_like, reference_of, second_derivatives

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
attention_op = torch.ops.fulgurite.attention
B, HQ, HKV, N, M, D, SCALE = 2, 4, 2, 50, 140, 16, 0.5
LOWEST = torch.finfo(torch.float32).min
KEYS = torch.arange(M)


def quarters(generator: torch.Generator, *shape: int) -> Tensor:
    """Multiples of ¼ up to 1: their products and the sums of these are exact in every dtype."""
    return torch.randint(-4, 5, shape, generator=generator) / 4


def hidden_rows(fill: float) -> Callable[[torch.Generator], dict[str, Any]]:
    def bias(generator: torch.Generator) -> dict[str, Any]:
        bias = torch.zeros(B, 1, N, M)
        bias[:, :, 3:9] = fill
        bias[1, :, 20] = fill
        return {"bias": bias, "causal": True}

    return bias


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


CASES: dict[str, Callable[[torch.Generator], dict[str, Any]]] = {
    **{f"rows_of_{fill:.0e}": hidden_rows(fill) for fill in (-1e2, -1e4, -1e6, -1e9, LOWEST)},
    "bias_of_every_pair": lambda g: {"bias": 1e4 * normal(g, 1, HQ, N, M)},
    "bias_of_keys": lambda g: {"bias": 1e6 + normal(g, HQ, 1, M), "window_left": 30},
    "bias_of_rows": lambda g: {"bias": 1e5 * normal(g, N, 1), "sink": 1e5 * normal(g, HQ)},
    "bias_and_slopes": lambda g: {
        "bias": 3e3 * normal(g, N, M),
        "alibi_slopes": 50 * normal(g, HQ).abs(),
    },
    "slopes": lambda g: {
        "alibi_slopes": 1e4 * normal(g, B, HQ).abs(),
        "mask": (query_positions(N, M, "bottom_right", DEVICE)[:, None] - KEYS).abs() > 4,
    },
    "sink": lambda g: {
        "sink": torch.tensor([1e4, -1e4, 300.0, 1e9]),
        "bias": 1e4 * normal(g, N, 1),
    },
    "dropout": lambda g: {
        "bias": -1e4 * (normal(g, 1, 1, N, 1) > 0).float(),
        "dropout_p": 0.2,
        "philox": torch.tensor([5, 6]),
    },
    "chunks": lambda g: {"bias": -1e7 * normal(g, N, 1).abs(), "chunk_size": 40, "sink_tokens": 3},
}  # fmt: skip


def make_case(case: str, dtype: torch.dtype) -> tuple[Results, dict[str, Any]]:
    """Tensors with a gradient by name, and the other arguments."""
    generator = torch.Generator().manual_seed(7)
    shapes = {"query": (B, HQ, N, D), "key": (B, HKV, M, D), "value": (B, HKV, M, D)}
    tensors = {k: quarters(generator, *shape).to(dtype) for k, shape in shapes.items()}
    kwargs = CASES[case](generator) | {"scale": SCALE}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if "alibi_slopes" in kwargs:
        kwargs["alibi_slopes"] = kwargs["alibi_slopes"].to(wide)
    for name in ("bias", "sink"):
        if name in kwargs:
            tensors[name] = kwargs.pop(name).to(wide)
    return tensors, kwargs


def doubled(tensors: Results) -> Results:
    return {name: to_float64(tensor) for name, tensor in tensors.items()}


def of_rounded_scores(
    tensors: Results, kwargs: dict[str, Any]
) -> tuple[Results, dict[str, Any], Callable[[Tensor], Tensor]]:
    """A call in float64 whose bias makes the same scores; what sums its gradient to the bias's."""
    wide = torch.float64 if tensors["query"].dtype == torch.float64 else torch.float32
    key = tensors["key"].repeat_interleave(HQ // HKV, dim=1)
    products = SCALE * tensors["query"].to(wide) @ key.to(wide).mT
    added = tensors.get("bias", torch.zeros((), dtype=wide))
    others = dict(kwargs)
    if "alibi_slopes" in kwargs:
        distance = (query_positions(N, M, "bottom_right", DEVICE)[:, None] - torch.arange(M)).abs()
        added = added - others.pop("alibi_slopes").reshape(-1, HQ, 1, 1) * distance
    rounded = (products + added).double() - products.double()
    shape = tensors["bias"].shape if "bias" in tensors else ()
    return doubled(tensors) | {"bias": rounded}, others, lambda grad: grad.sum_to_size(shape)


def results(function: Callable[..., Any], tensors: Results, kwargs: dict[str, Any]) -> Results:
    generator = torch.Generator().manual_seed(1)
    cotangents = (quarters(generator, B, HQ, N, D), quarters(generator, B, HQ, N))
    names = list(tensors)

    def call(*given: Tensor, **scores: Any) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, given, strict=True))
        query, key, value = (named.pop(name) for name in ("query", "key", "value"))
        out, lse = function(query, key, value, **named, **scores)
        return out, lse.masked_fill(lse.detach().isinf(), 0.0)

    return forward_backward(call, tensors, cotangents, **kwargs)


def assert_near(actual: Results, expected: Results, dtype: torch.dtype) -> None:
    u = torch.finfo(dtype).eps / 2
    units = 32 if dtype in (torch.float64, torch.float32) else 4
    for label, one in actual.items():
        want = expected[label].to(one.dtype).double()
        largest = want.abs().max().item()
        error = (one.double() - want).abs().max().item()
        assert error <= units * u * max(largest, 1.0), f"{label}: {error:.3g} of {largest:.3g}"


@each_dtype
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_rounded_scores(case: str, dtype: torch.dtype, isa: str) -> None:
    tensors, kwargs = make_case(case, dtype)
    exact, others, bias_gradient = of_rounded_scores(tensors, kwargs)
    expected = results(attention, exact, others)
    grads = [label for label in expected if label.endswith("bias")]
    actual = results(attention_op, tensors, kwargs)
    for label in grads:
        expected[label] = bias_gradient(expected[label])
    assert_near(actual, {k: v for k, v in expected.items() if k in actual}, dtype)


@each_dtype
@pytest.mark.parametrize("factor", [64.0, 2.0**14, 2.0**28])
def test_large_products(factor: float, dtype: torch.dtype, isa: str) -> None:
    """Scores up to 10⁹ from queries alone, which float16 cannot hold beyond 6·10⁴."""
    if dtype == torch.float16:
        factor = min(factor, 2.0**14)
    tensors, _ = make_case("sink", dtype)
    tensors["query"] = (tensors["query"] * factor).to(dtype)
    del tensors["bias"], tensors["sink"]
    kwargs = {"scale": SCALE, "causal": True}
    expected = results(attention, doubled(tensors), kwargs)
    assert_near(results(attention_op, tensors, kwargs), expected, dtype)


@each_dtype
def test_packed_sequences(dtype: torch.dtype, isa: str) -> None:
    """A sequence has the bits of the same rows in a batch of one."""
    tensors, kwargs = make_case("slopes", dtype)
    slopes = kwargs["alibi_slopes"][:1]
    scores = {"alibi_slopes": slopes, "scale": SCALE, "causal": True, "align": "top_left"}
    alone = {name: tensor[:1] for name, tensor in tensors.items()}
    packed = {name: tensor[0].transpose(0, 1) for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(1)
    grad_out, grad_lse = quarters(generator, 1, HQ, N, D), quarters(generator, 1, HQ, N)
    expected = forward_backward(attention_op, alone, (grad_out, grad_lse), **scores)
    offsets = [torch.tensor([0, size]) for size in (N, M)]

    def varlen(*rows: Tensor, **scores: Any) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.fulgurite.attention_varlen(*rows, *offsets, **scores)
        return out.transpose(0, 1)[None], lse[None]

    actual = forward_backward(varlen, packed, (grad_out, grad_lse), **scores)
    for name in tensors:
        label = f"grad of {name}"
        actual[label] = actual[label].transpose(0, 1)[None]
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("case", ["rows_of_-1e+09", "bias_and_slopes", "sink", "dropout"])
def test_second_derivatives(case: str, dtype: torch.dtype) -> None:
    tensors, kwargs = make_case(case, dtype)
    exact, others, bias_gradient = of_rounded_scores(tensors, kwargs)
    cotangents, directions = cotangents_for(tensors, kwargs), noise_like(tensors, seed=2)
    directed = doubled(directions)
    directed["bias"] = directed["bias"].expand(exact["bias"].shape)
    expected = reference_of(exact, cotangents, directed, others)
    expected["bias"] = bias_gradient(expected["bias"])
    actual = second_derivatives(attention_op, tensors, cotangents, directions, kwargs)
    u = torch.finfo(dtype).eps / 2
    for label, one in actual.items():
        want = expected[label]
        error = (one.double() - want).abs().max().item()
        assert error <= 256 * u * max(want.abs().max().item(), 1.0), f"{label}: {error:.3g}"


def test_a_row_that_a_finite_mask_hides_weighs_its_keys_alike() -> None:
    """The use: padding as most model code writes it. Every row of P sums to 1."""
    query, key, value = (torch.randn(1, 2, 64, 32, requires_grad=True) for _ in range(3))
    mask = torch.zeros(64, 64)
    mask[40:] = LOWEST
    F.attention(query, key, value, bias=mask).sum().backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad.sum(2), torch.full((1, 2, 32), 64.0))


def normalised(**scores: Any) -> bool:
    query, key, value = (torch.randn(1, 2, 40, 8, requires_grad=True) for _ in range(3))

    def step() -> None:
        F.attention(query, key, value, **scores).sum().backward()

    return "attention_normalise" in {row["kernel"] for row in fulgurite.explain(step)}


def test_only_calls_with_large_rows_pay() -> None:
    assert not normalised()
    assert not normalised(bias=torch.randn(40, 40))
    assert normalised(bias=torch.full((40, 1), -1e4))


@each_dtype
def test_bits_do_not_depend_on_threads_or_the_batch(dtype: torch.dtype) -> None:
    tensors, kwargs = make_case("bias_of_every_pair", dtype)
    with threads(1):
        one = results(attention_op, tensors, kwargs)
    with threads(2):
        assert_same_bits(results(attention_op, tensors, kwargs), one)
    generator = torch.Generator().manual_seed(1)
    cotangents = (quarters(generator, B, HQ, N, D), quarters(generator, B, HQ, N))

    def call(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return attention_op(query, key, value, bias=tensors["bias"], scale=SCALE)  # type: ignore[no-any-return]

    inputs = {name: tensors[name] for name in ("query", "key", "value")}
    whole = forward_backward(call, inputs, cotangents)
    alone = forward_backward(
        call, {k: t[1:] for k, t in inputs.items()}, tuple(c[1:] for c in cotangents)
    )
    assert_same_bits(alone, {label: t[1:] for label, t in whole.items()})
