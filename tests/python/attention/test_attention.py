"""attention beyond the generated checks: shapes, loss terms, batch composition, threads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fulgurite
from common_checks import (
    DEVICE,
    assert_equals_reference,
    assert_same_bits,
    forward_backward,
    threads,
)
from fulgurite.demo.memory import peak_bytes
from fulgurite.testing import OPERATORS, Sample, assert_accurate, evaluate, unit_roundoff
from fulgurite.testing.backend import always_spread
from fulgurite.testing.references.attention import attention, attention_naive
from fulgurite.testing.samples.attention import qkv

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ATTENTION = OPERATORS["attention"]
attention_op = torch.ops.fulgurite.attention
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


any_call = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 1000),
        "B": st.integers(0, 3),
        "Hkv": st.integers(1, 3),
        "group": st.integers(1, 4),
        "N": st.integers(0, 70),
        "M": st.integers(0, 70),
        "D": st.integers(0, 40),
        "Dv": st.integers(0, 40),
        "scale": st.sampled_from([None, 0.1, 1.0]),
        "causal": st.booleans(),
        "align": st.sampled_from(["bottom_right", "top_left"]),
        "window_left": st.integers(-1, 80),
        "window_right": st.integers(-1, 80),
        # None, or how many leading dims a mask lacks, which of its dims are 1, its density
        "mask": st.none()
        | st.tuples(
            st.integers(0, 3),
            st.tuples(*[st.booleans()] * 4),
            st.sampled_from([0.2, 0.9]),
        ),
    }
)


@given(call=any_call)
def test_any_shape_and_argument(call: dict[str, Any], isa: str) -> None:
    """Any sizes, 0 included, with any of the arguments that are served."""
    dtype, generator = call["dtype"], torch.Generator().manual_seed(call["seed"])
    sizes = {name: call[name] for name in ("B", "Hkv", "N", "M", "D", "Dv")}
    sizes["Hq"] = call["Hkv"] * call["group"]
    kwargs = {k: call[k] for k in ("scale", "causal", "align", "window_left", "window_right")}
    if call["D"] == 0:
        kwargs["scale"] = 1.0
    tensors = qkv(generator, dtype, DEVICE, **sizes)
    if call["mask"] is not None:
        lacking, single, density = call["mask"]
        shape = [
            1 if one else sizes[d] for one, d in zip(single, ("B", "Hq", "N", "M"), strict=True)
        ]
        kwargs["mask"] = torch.rand(shape[lacking:], generator=generator) < density
    sample = Sample("any", tensors, kwargs)
    assert_equals_reference(ATTENTION, sample, dtype, magnitude=max(1.0, call["Dv"] ** 0.5))


@each_dtype
def test_dtypes_of_results(dtype: torch.dtype) -> None:
    out, lse = attention_op(*qkv(torch.Generator(), dtype, DEVICE, N=3, M=4, D=5, Dv=6))
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
    tensors = qkv(generator, dtype, DEVICE, Hq=4, Hkv=2, N=20, M=70, D=16, Dv=8)
    inputs = dict(zip(("query", "key", "value"), tensors, strict=True))
    noise = [torch.randn(s, generator=generator).to(dtype) for s in ((2, 4, 20, 8), (2, 4, 20))]
    cotangents = (noise[0] if used != "lse" else None, noise[1] if used != "out" else None)
    with threads(1):
        wide = {name: tensor.double() for name, tensor in inputs.items()}
        wide_cotangents = tuple(None if c is None else c.double() for c in cotangents)
        reference = forward_backward(attention, wide, wide_cotangents, causal=True)
        naive = forward_backward(attention_naive, inputs, cotangents, causal=True)
    actual = forward_backward(attention_op, inputs, cotangents, causal=True)
    assert_accurate(actual, reference, naive, dtype, magnitude=1.0)
    assert reference["grad of query"].abs().max() > 0
    if used == "lse":
        assert (actual["grad of value"] == 0).all()


@each_dtype
@pytest.mark.parametrize("company", ["finite", "nan"])
def test_same_bits_in_any_batch(dtype: torch.dtype, company: str, isa: str) -> None:
    """A sample's results do not depend on what else is in the batch, nor on its place there."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = qkv(generator, dtype, DEVICE, B=3, Hq=4, Hkv=2, N=100, M=140, D=40)
    mask = torch.rand(3, 1, 100, 140, generator=generator) < 0.8
    cotangents = tuple(
        torch.randn(s, generator=generator).to(dtype) for s in ((3, 4, 100, 40), (3, 4, 100))
    )
    if company == "nan":
        key[1], value[1] = math.nan, math.nan
    inputs = {"query": query, "key": key, "value": value}
    kwargs = {"causal": True, "window_left": 90}
    together = forward_backward(attention_op, inputs, cotangents, mask=mask, **kwargs)
    for b in (0, 2) if company == "nan" else (0, 1, 2):
        one = {name: tensor[b : b + 1] for name, tensor in inputs.items()}
        noise = tuple(cotangent[b : b + 1] for cotangent in cotangents)
        alone = forward_backward(attention_op, one, noise, mask=mask[b : b + 1], **kwargs)
        within = {label: tensor[b : b + 1] for label, tensor in together.items()}
        assert_same_bits(alone, within, f"sample {b}")


@each_dtype
def test_mask_of_a_batch_that_divides(dtype: torch.dtype, isa: str) -> None:
    """A mask of batch B' dividing B repeats: sample b takes b mod B', as Swin's windows do."""
    generator = torch.Generator().manual_seed(0)
    tensors = qkv(generator, dtype, DEVICE, B=6, N=20, M=30, D=8)
    mask = torch.rand(3, 1, 20, 30, generator=generator) < 0.7
    actual = evaluate(attention_op, ATTENTION, Sample("periodic", tensors, {"mask": mask}))
    repeated = Sample("repeated", tensors, {"mask": mask.repeat(2, 1, 1, 1)})
    assert_same_bits(actual, evaluate(attention_op, ATTENTION, repeated))


@each_dtype
@pytest.mark.parametrize("B", [1, 3])
def test_same_bits_for_any_threads_in_large_calls(dtype: torch.dtype, B: int, isa: str) -> None:
    """Large enough that the work is shared out, which the generated check's samples are not."""
    generator = torch.Generator().manual_seed(0)
    tensors = qkv(generator, dtype, DEVICE, B=B, Hq=4, Hkv=2, N=300, M=333, D=64)
    sample = Sample("large", tensors, {"causal": True})
    with threads(1):
        one = evaluate(attention_op, ATTENTION, sample)
    for count in (2, 3, 8):
        with threads(count):
            many = evaluate(attention_op, ATTENTION, sample)
        assert_same_bits(many, one, f"with {count} threads")


@each_dtype
@pytest.mark.parametrize("hidden", [{}, {"causal": True}, {"window_left": 200, "sink_tokens": 3}])
@pytest.mark.parametrize("N", [1, 500])
def test_key_blocks_of_one_head_add_to_dq_in_turn(
    dtype: torch.dtype, N: int, hidden: dict[str, Any], isa: str
) -> None:
    """Nine blocks on up to nine threads, in four chains."""
    generator = torch.Generator().manual_seed(0)
    tensors = qkv(generator, dtype, DEVICE, Hq=2, Hkv=1, N=N, M=1100, D=24)
    sample = Sample("one head", tensors, hidden)
    with threads(1):
        one = evaluate(attention_op, ATTENTION, sample)
    for count in (2, 5, 9):
        with threads(count), always_spread():
            assert_same_bits(evaluate(attention_op, ATTENTION, sample), one, f"{count} threads")


def test_one_head_has_a_task_for_every_key_block() -> None:
    tensors = [
        x.requires_grad_() for x in qkv(torch.Generator(), torch.float32, DEVICE, N=9, M=1100, D=8)
    ]
    ran = fulgurite.explain(lambda: attention_op(*tensors, causal=True)[0].sum().backward())
    tasks = {row["kernel"]: row["tasks"] for row in ran}
    heads = tensors[1].shape[0] * tensors[1].shape[1]
    assert tasks["attention_backward"] == 9 * heads


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_beyond_the_range_of_16_bit(dtype: torch.dtype, isa: str) -> None:
    """Scores of 10⁵ are kept in the accumulation type and their exponentials do not overflow.

    Products of small integers are exact in float32, so all that remains is the result's rounding.
    """
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randint(-150, 151, (1, 2, 70, 64), generator=generator) for _ in range(2))
    value = torch.randn(1, 2, 70, 16, generator=generator).to(dtype)
    out, lse = attention_op(query.to(dtype), key.to(dtype), value, scale=1.0, causal=True)
    want, want_lse = attention(query.double(), key.double(), value.double(), scale=1.0, causal=True)
    assert want_lse.max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(lse.double(), want_lse, rtol=2**-23, atol=2**-20)
    u = unit_roundoff(dtype)
    torch.testing.assert_close(out.double(), want, rtol=2 * u, atol=2 * u)


@pytest.mark.parametrize("N", [1, 200], ids=["taken_together", "one_by_one"])
def test_many_heads_share_the_memory_of_the_parts_of_dq(N: int) -> None:
    """More heads than parts are kept for; small tasks start several at a time."""
    query, key, value = (
        x.requires_grad_()
        for x in qkv(torch.Generator(), torch.float32, DEVICE, B=8, Hq=8, N=N, M=512, D=8)
    )

    def gradients() -> dict[str, torch.Tensor]:
        out, _ = attention_op(query, key, value)
        grads = torch.autograd.grad(out, (query, key, value), torch.ones_like(out))
        return dict(zip(("query", "key", "value"), grads, strict=True))

    with threads(1):
        alone = gradients()
    with threads(5), always_spread():
        assert_same_bits(gradients(), alone)


def test_memory_grows_with_the_length_not_with_its_square() -> None:
    """A score matrix would have 256 MiB."""
    query, key, value = (
        x.requires_grad_()
        for x in qkv(torch.Generator(), torch.float32, DEVICE, B=1, Hq=1, N=8192, M=8192, D=16)
    )
    grad = torch.ones_like(query)
    size = query.numel() * query.element_size()
    out, _ = attention_op(query, key, value, causal=True, window_left=255)
    forward = peak_bytes(lambda: attention_op(query, key, value, causal=True, window_left=255))
    backward = peak_bytes(
        lambda: torch.autograd.grad(out, (query, key, value), grad, retain_graph=True)
    )
    assert forward < 4 * size  # out and lse, K and V packed
    assert backward < 12 * size  # three gradients, three packed copies, four parts of dQ
