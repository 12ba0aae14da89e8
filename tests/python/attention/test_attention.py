"""attention beyond the generated checks: shapes, loss terms, batch composition, threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common_checks import CPU, assert_same_bits, forward_backward, threads
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.testing import OPERATORS, Sample, assert_accurate, evaluate, to_float64
from fulgurite.testing.references.attention import attention, attention_naive
from fulgurite.testing.samples.attention import qkv

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
attention_op = torch.ops.fulgurite.attention
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def assert_equals_reference(sample: Sample, dtype: torch.dtype) -> None:
    entry = OPERATORS["attention"]
    assert_accurate(
        evaluate(attention_op, entry, sample, cotangent_dtype=dtype),
        evaluate(attention, entry, sample.map(to_float64), cotangent_dtype=dtype),
        evaluate(attention_naive, entry, sample, cotangent_dtype=dtype),
        dtype,
        magnitude=1.0,
    )


@st.composite
def any_call(draw: st.DrawFn) -> tuple[Sample, torch.dtype]:
    """Any sizes, 0 included, with any of the arguments that are served."""
    dtype = draw(st.sampled_from(DTYPES))
    B, Hkv, group = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    N, M = draw(st.integers(0, 80)), draw(st.integers(0, 80))
    D, Dv = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensors = qkv(generator, dtype, CPU, B=B, Hq=Hkv * group, Hkv=Hkv, N=N, M=M, D=D, Dv=Dv)
    kwargs: dict[str, Any] = {
        "scale": draw(st.sampled_from([None, 0.1, 1.0] if D else [0.1, 1.0])),
        "causal": draw(st.booleans()),
        "align": draw(st.sampled_from(["bottom_right", "top_left"])),
        "window_left": draw(st.integers(-1, 90)),
        "window_right": draw(st.integers(-1, 90)),
    }
    if draw(st.booleans()):
        sizes = (B, Hkv * group, N, M)
        full = draw(st.tuples(*[st.booleans()] * 4))
        shape = [size if whole else 1 for size, whole in zip(sizes, full, strict=True)]
        shape = shape[draw(st.integers(0, 2)) :]
        kwargs["mask"] = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.2, 0.9]))
    return Sample("any", tensors, kwargs), dtype


@given(call=any_call())
def test_any_shape_and_argument(call: tuple[Sample, torch.dtype], isa: str) -> None:
    assert_equals_reference(*call)


@each_dtype
def test_dtypes_of_results(dtype: torch.dtype) -> None:
    out, lse = attention_op(*qkv(torch.Generator(), dtype, CPU, N=3, M=4, D=5, Dv=6))
    assert (out.dtype, out.shape) == (dtype, (2, 2, 3, 6))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (lse.dtype, lse.shape) == (wide, (2, 2, 3))


def test_no_heads() -> None:
    inputs = {name: torch.ones(2, 0, 3, 4) for name in ("query", "key", "value")}
    results = forward_backward(attention_op, inputs, (torch.ones(2, 0, 3, 4), None))
    assert results["output 1"].shape == (2, 0, 3)
    assert all(results[f"grad of {name}"].shape == (2, 0, 3, 4) for name in inputs)


@each_dtype
@pytest.mark.parametrize("used", ["out", "lse", "both"])
def test_loss_of_out_lse_or_both(dtype: torch.dtype, used: str, isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = qkv(generator, dtype, CPU, Hq=4, Hkv=2, N=20, M=70, D=16, Dv=8)
    inputs = dict(zip(("query", "key", "value"), tensors, strict=True))
    noise = [torch.randn(s, generator=generator).to(dtype) for s in ((2, 4, 20, 8), (2, 4, 20))]
    cotangents = (noise[0] if used != "lse" else None, noise[1] if used != "out" else None)
    wide = tuple(None if c is None else c.double() for c in cotangents)
    reference = forward_backward(
        attention, {k: v.double() for k, v in inputs.items()}, wide, causal=True
    )
    naive = forward_backward(attention_naive, inputs, cotangents, causal=True)
    actual = forward_backward(attention_op, inputs, cotangents, causal=True)
    assert_accurate(actual, reference, naive, dtype)
    assert reference["grad of query"].abs().max() > 0
    if used == "lse":
        assert (actual["grad of value"] == 0).all()


@each_dtype
def test_same_bits_in_any_batch(dtype: torch.dtype, isa: str) -> None:
    """A sample's results do not depend on what else is in the batch, nor on its place there."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = qkv(generator, dtype, CPU, B=3, Hq=4, Hkv=2, N=100, M=140, D=40)
    mask = torch.rand(3, 1, 100, 140, generator=generator) < 0.8
    cotangents = tuple(
        torch.randn(s, generator=generator).to(dtype) for s in ((3, 4, 100, 40), (3, 4, 100))
    )
    inputs = {"query": query, "key": key, "value": value}
    kwargs = {"causal": True, "window_left": 90}
    together = forward_backward(attention_op, inputs, cotangents, mask=mask, **kwargs)
    for b in range(3):
        one = {name: tensor[b : b + 1] for name, tensor in inputs.items()}
        noise = tuple(cotangent[b : b + 1] for cotangent in cotangents)
        alone = forward_backward(attention_op, one, noise, mask=mask[b : b + 1], **kwargs)
        within = {label: tensor[b : b + 1] for label, tensor in together.items()}
        assert_same_bits(alone, within, f"sample {b}")


@each_dtype
@pytest.mark.parametrize("B", [1, 3])
def test_same_bits_for_any_threads_in_large_calls(dtype: torch.dtype, B: int, isa: str) -> None:
    """Large enough that the work is shared out, which the generated check's samples are not."""
    generator = torch.Generator().manual_seed(0)
    tensors = qkv(generator, dtype, CPU, B=B, Hq=4, Hkv=2, N=300, M=333, D=64)
    sample = Sample("large", tensors, {"causal": True})
    with threads(1):
        one = evaluate(attention_op, OPERATORS["attention"], sample)
    for count in (2, 3, 8):
        with threads(count):
            many = evaluate(attention_op, OPERATORS["attention"], sample)
        assert_same_bits(many, one, f"with {count} threads")
