"""Second derivatives of attention are those of the reference, and let nothing hidden out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import DEVICE, Results, assert_same_bits, threads
from fulgurite.testing import ErrorStatistics, assert_accurate
from fulgurite.testing.references.attention import (
    PAIRWISE_LIMIT,
    attention,
    attention_naive,
)
from fulgurite.testing.tolerances import MIN_SEEDS
from second_derivatives import (
    CASES,
    LARGE,
    MIDDLE,
    SMALL,
    Attention,
    attention_op,
    call,
    coin,
    cotangents_for,
    make_case,
    noise_like,
    normal,
    reference_of,
    second_derivatives,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_case = pytest.mark.parametrize("case", CASES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@each_case
def test_gradgradcheck(case: str) -> None:
    inputs, kwargs = make_case(case, SMALL)
    hidden = {k: torch.isinf(t) for k, t in inputs.items()}

    def function(*tensors: Tensor) -> list[Tensor]:
        given = {
            k: t.masked_fill(hidden[k], -math.inf) for k, t in zip(inputs, tensors, strict=True)
        }
        return call(attention_op, given, kwargs)

    leaves = [t.nan_to_num(neginf=0.0).requires_grad_() for t in inputs.values()]
    with threads(1):
        assert torch.autograd.gradgradcheck(function, leaves)


@each_case
@pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
def test_equals_the_reference_differentiated_twice(case: str, sizes: dict[str, int]) -> None:
    inputs, kwargs = make_case(case, sizes)
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    assert_accurate(
        actual, reference_of(inputs, cotangents, directions, kwargs), None, torch.float64
    )


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ["causal", "softcap_bias_sink", "laplace", "dropout"])
def test_as_accurate_as_first_derivatives(case: str, dtype: torch.dtype) -> None:
    """The rule that every operator is held to; plain PyTorch in the dtype is its yardstick."""
    statistics = ErrorStatistics(dtype)
    for seed in range(MIN_SEEDS):
        inputs, kwargs = make_case(case, MIDDLE, dtype, seed)
        cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
        given = (inputs, cotangents, directions, kwargs)
        actual = second_derivatives(attention_op, *given)
        with threads(1):
            naive = second_derivatives(attention_naive, *given)
        statistics.add(actual, reference_of(*given), naive)
        for label, grad in actual.items():
            assert grad.dtype == (inputs | cotangents)[label].dtype
            assert grad.is_contiguous()
    statistics.assert_accurate()


@pytest.mark.parametrize(
    "sizes",
    [{"B": 0}, {"Hq": 0, "Hkv": 0}, {"Hq": 0, "Hkv": 2}, {"N": 0}, {"M": 0}, {"D": 0}, {"Dv": 0}],
    ids=str,
)
@pytest.mark.parametrize("extra", ["plain", "softcap_bias_sink", "relu2_bias_softcap"])
def test_empty_sizes(sizes: dict[str, int], extra: str) -> None:
    inputs, kwargs = make_case(extra, SMALL | sizes)
    kwargs["scale"] = 0.5
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    if "Hq" in sizes:  # what the reference cannot reshape
        assert all((grad == 0).all() for grad in actual.values())
    else:
        expected = reference_of(inputs, cotangents, directions, kwargs)
        assert_accurate(actual, expected, None, torch.float64)


@pytest.mark.parametrize("used", [["query"], ["value"], ["key", "bias"], ["sink"]], ids="-".join)
def test_some_gradients_differentiated(used: list[str]) -> None:
    """Only some first gradients lead on, and only some second ones are asked for."""
    inputs, kwargs = make_case("softcap_bias_sink", SMALL)
    cotangents = cotangents_for(inputs, kwargs)
    directions = {k: t for k, t in noise_like(inputs, seed=2).items() if k in used}
    together = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    expected = reference_of(inputs, cotangents, directions, kwargs)
    assert_accurate(together, expected, None, torch.float64)
    for label, grad in together.items():
        alone = second_derivatives(
            attention_op, inputs, cotangents, directions, kwargs, wanted=(label,)
        )
        assert_same_bits(alone, {label: grad})


@pytest.mark.parametrize("used", [0, 1], ids=["out", "lse"])
def test_loss_of_one_output(used: int) -> None:
    inputs, kwargs = make_case("sink", SMALL)

    def one_output(function: Attention) -> Attention:
        return lambda *args, **options: function(*args, **options)[used : used + 1] * 2

    grads = []
    for function in (attention_op, attention):
        leaves = {k: t.clone().requires_grad_() for k, t in inputs.items()}
        output = call(one_output(function), leaves, kwargs)[0]
        first = torch.autograd.grad(
            output.pow(3).sum(),
            list(leaves.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        loss = sum(g.square().sum() for g in first)
        assert isinstance(loss, Tensor)
        second = torch.autograd.grad(
            loss, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        grads.append(dict(zip(leaves, second, strict=True)))
    assert_accurate(grads[0], grads[1], None, torch.float64)


def test_float32_bias_and_sink_beside_other_dtypes() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        inputs, kwargs = make_case("softcap_bias_sink", SMALL, dtype)
        inputs |= {k: inputs[k].float() for k in ("bias", "sink")}
        cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
        actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
        expected = reference_of(inputs, cotangents, directions, kwargs)
        for label, grad in actual.items():
            assert grad.dtype == (inputs | cotangents)[label].dtype
            rtol = 2**-22 if grad.dtype == torch.float32 else 2**-7
            torch.testing.assert_close(grad.double(), expected[label], rtol=rtol, atol=rtol)


def test_gradient_penalty() -> None:
    """The use: a loss on the size of an input gradient, and its gradient by the parameters."""
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, 2, 7, 8)
    weights = [normal(generator, 8, 8) / 3 for _ in range(3)]

    def parameter_gradients(attend: Callable[..., Tensor]) -> Results:
        leaves = [weight.clone().requires_grad_() for weight in weights]
        sample = x.clone().requires_grad_()
        heads = [(sample @ w).unflatten(-1, (2, 4)).transpose(1, 2) for w in leaves]
        critic = attend(*heads).square().sum()
        (slope,) = torch.autograd.grad(critic, sample, create_graph=True)
        penalty = (slope.norm(dim=-1) - 1).square().mean()
        (critic + 10 * penalty).backward()
        return {f"weight {i}": leaf.grad for i, leaf in enumerate(leaves) if leaf.grad is not None}

    actual = parameter_gradients(lambda q, k, v: F.attention(q, k, v, causal=True))
    expected = parameter_gradients(lambda q, k, v: attention(q, k, v, causal=True)[0])
    assert len(actual) == 3
    assert_accurate(actual, expected, None, torch.float64)


def test_autocast_does_not_lower_the_sums() -> None:
    inputs, kwargs = make_case("causal", SMALL, torch.float32)
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    leaves = {k: t.requires_grad_() for k, t in inputs.items()}
    outputs = call(attention_op, leaves, kwargs)
    first = torch.autograd.grad(
        outputs, list(leaves.values()), list(cotangents.values()), create_graph=True
    )

    def second() -> Results:
        grads = torch.autograd.grad(
            first, list(leaves.values()), list(directions.values()), retain_graph=True
        )
        return dict(zip(leaves, grads, strict=True))

    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        lowered = second()
    assert_same_bits(lowered, second())


# ---------------------------------------------------------------- hidden values

any_call = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "case": st.sampled_from(
            ["plain", "causal", "window", "mask", "bias", "sink", "softcap", "laplace"]
        ),
        "N": st.integers(1, 9),
        "M": st.integers(1, 12),
        "group": st.integers(1, 2),
    }
)


@given(
    draw=any_call,
    where=st.sampled_from(["query", "key", "value", "grad 0"]),
    directed=st.booleans(),
    places=st.lists(st.integers(0, 10_000), min_size=1, max_size=2),
)
def test_what_is_hidden_never_leaks(
    draw: dict[str, Any], where: str, directed: bool, places: list[int]
) -> None:
    """NaN in an input, a cotangent or a direction reaches only what a kept pair reads."""
    sizes = {"B": 1, "Hq": draw["group"], "Hkv": 1, "N": draw["N"], "M": draw["M"], "D": 2, "Dv": 3}
    inputs, kwargs = make_case(draw["case"], sizes, seed=draw["seed"])
    assert inputs["query"].numel() * sizes["M"] <= PAIRWISE_LIMIT
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    clean = reference_of(inputs, cotangents, directions, kwargs)
    tensor = directions[where] if directed and where != "grad 0" else (inputs | cotangents)[where]
    flat = tensor.view(-1)
    for place in places:
        flat[place % flat.numel()] = math.nan
    poisoned = reference_of(inputs, cotangents, directions, kwargs)
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    for label, grad in actual.items():
        reached = poisoned[label].isnan()
        assert not (grad.isnan() & ~reached).any(), label
        torch.testing.assert_close(
            grad.masked_fill(reached, 0), clean[label].masked_fill(reached, 0), rtol=1e-9, atol=1e-9
        )


@each_dtype
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_padding_may_hold_anything(dtype: torch.dtype, number: float) -> None:
    """Keys that no query sees, and queries that see nothing, change no result."""
    inputs, kwargs = make_case("causal", LARGE, dtype)
    mask = coin(torch.Generator().manual_seed(3), 2, 1, 150, 140)
    mask[..., 90:] = False
    mask[:, :, 20:60] = False
    kwargs["mask"] = mask
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    clean = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    for tensors in (inputs, directions):
        tensors["key"][:, :, 90:] = number
        tensors["value"][:, :, 90:] = number
        tensors["query"][:, :, 20:60] = number
    for cotangent in cotangents.values():
        cotangent[:, :, 20:60] = number
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    u = torch.finfo(dtype).eps
    for label, grad in actual.items():
        torch.testing.assert_close(grad, clean[label], rtol=4 * u, atol=16 * u)
        if label.startswith("grad"):
            continue
        assert label != "key" or (grad[:, :, 90:] == 0).all()
