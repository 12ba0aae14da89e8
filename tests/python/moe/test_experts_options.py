"""The options of the experts against models that have them, and against each other.

T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as tF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import Results, assert_same_bits, forward_backward, threads
from fulgurite.testing import assert_accurate
from fulgurite.testing.backend import always_spread
from fulgurite.testing.references import moe_experts as reference

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai")
NAMES = ("x", "weights", "w_in", "w_out", "b_in", "b_out")


def inputs_of(
    seed: int,
    dtype: torch.dtype,
    *,
    T: int,
    E: int,
    H: int,
    I: int,
    K: int,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = 2 * I if options.get("gated", True) else I
    w_in = torch.randn(E, width, H, generator=generator) * H**-0.5
    w_out = torch.randn(E, H, I, generator=generator) * I**-0.5
    turn = options.get("transposed", False)
    tensors = {
        "x": torch.randn(T, H, generator=generator),
        "weights": torch.rand(T, K, generator=generator),
        "w_in": w_in.mT.contiguous() if turn else w_in,
        "w_out": w_out.mT.contiguous() if turn else w_out,
        "b_in": torch.randn(E, width, generator=generator),
        "b_out": torch.randn(E, H, generator=generator),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def run(
    inputs: dict[str, Tensor],
    ids: Tensor,
    grad: Tensor,
    function: Any = F.moe_experts,
    **options: Any,
) -> Results:
    def call(
        x: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor, b_out: Tensor
    ) -> tuple[Tensor]:
        y: Tensor = function(x, ids, weights, w_in, w_out, b_in=b_in, b_out=b_out, **options)
        return (y,)

    return forward_backward(call, inputs, (grad,))


@given(
    seed=st.integers(0, 1000),
    T=st.integers(1, 130),
    E=st.integers(1, 5),
    H=st.integers(1, 80),
    I=st.integers(1, 70),
    activation=st.sampled_from(ACTIVATIONS),
    layout=st.sampled_from(["gated", "interleaved", "not gated"]),
    transposed=st.booleans(),
    save_hidden=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_combination_equals_the_reference(
    isa: str,
    seed: int,
    T: int,
    E: int,
    H: int,
    I: int,
    activation: str,
    layout: str,
    transposed: bool,
    save_hidden: bool,
    dtype: torch.dtype,
) -> None:
    options: dict[str, Any] = {"activation": activation, "transposed": transposed}
    if activation == "swiglu_oai":
        options |= {"alpha": 1.702, "limit": 1.0}
    elif layout == "not gated":
        options["gated"] = False
    options["interleaved"] = layout == "interleaved"
    inputs = inputs_of(seed, dtype, T=T, E=E, H=H, I=I, K=2, options=options)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, E + 1, (T, 2), generator=generator)
    grad = torch.randn(T, H, generator=generator).to(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact = run(wide, ids, grad, reference.moe_experts, **options)
    naive = run(inputs, ids, grad, reference.moe_experts, **options)
    # See test_experts.py: the generated tests judge float32 over seeds.
    size = max(float(x.abs().max()) for x in exact.values())
    actual = run(inputs, ids, grad, save_hidden=save_hidden, **options)
    assert_accurate(actual, exact, naive, dtype, magnitude=8 * max(4.0, size))


def gpt_oss_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor,
    b_out: Tensor,
) -> Tensor:
    """The experts of transformers' gpt-oss: all on every token, weighted by scattered scores."""
    E = w_in.shape[0]
    scores = torch.zeros(x.shape[0], E, dtype=x.dtype).scatter(1, ids, weights)
    gate_up = torch.bmm(x.repeat(E, 1, 1), w_in) + b_in[:, None, :]
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    gate, up = gate.clamp(min=None, max=7.0), up.clamp(min=-7.0, max=7.0)
    rows = torch.bmm((up + 1) * (gate * torch.sigmoid(gate * 1.702)), w_out) + b_out[:, None, :]
    return (rows * scores.T[..., None]).sum(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gpt_oss(isa: str, dtype: torch.dtype) -> None:
    T, E, H, I, K = 70, 6, 48, 36, 3
    options: dict[str, Any] = {
        "activation": "swiglu_oai",
        "interleaved": True,
        "transposed": True,
        "alpha": 1.702,
        "limit": 7.0,
    }
    inputs = inputs_of(1, dtype, T=T, E=E, H=H, I=I, K=K, options=options)
    inputs["w_in"] *= 5  # so that some gates and ups are beyond the limit
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(T, E, generator=generator).topk(K).indices
    grad = torch.randn(T, H, generator=generator).to(dtype)
    actual = run(inputs, ids, grad, **options)
    plain = forward_backward(
        lambda x, weights, *rest: (gpt_oss_experts(x, ids, weights, *rest),), inputs, (grad,)
    )
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    for label, tensor in plain.items():
        torch.testing.assert_close(actual[label], tensor, rtol=tolerance, atol=tolerance, msg=label)


def test_mixtral(isa: str) -> None:
    """A loop over modules of three Linear layers, as Mixtral and Qwen3 have them."""
    T, E, H, I, K = 50, 4, 24, 40, 2
    gates, ups, downs = (
        [torch.nn.Linear(a, b, bias=False) for _ in range(E)] for a, b in ((H, I), (H, I), (I, H))
    )
    x, ids = torch.randn(T, H), torch.randn(T, E).topk(K).indices
    weights = torch.rand(T, K)
    y = torch.zeros(T, H)
    for e in range(E):
        tokens, choices = torch.where(ids == e)
        rows = downs[e](tF.silu(gates[e](x[tokens])) * ups[e](x[tokens]))
        y.index_add_(0, tokens, rows * weights[tokens, choices, None])
    w_in = torch.stack([torch.cat([gates[e].weight, ups[e].weight]) for e in range(E)])
    w_out = torch.stack([downs[e].weight for e in range(E)])
    torch.testing.assert_close(F.moe_experts(x, ids, weights, w_in, w_out), y)


LAYOUTS: tuple[dict[str, Any], ...] = (
    {"activation": "swiglu_oai", "interleaved": True, "transposed": True, "limit": 2.0},
    {"activation": "gelu", "gated": False},
    {"activation": "relu2", "transposed": True},
)


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_threads_batches_and_recomputing_change_no_bits(
    isa: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    T, E, H, I = 650, 4, 90, 75
    inputs = inputs_of(2, dtype, T=T, E=E, H=H, I=I, K=2, options=options)
    generator = torch.Generator().manual_seed(2)
    first = torch.zeros(T, 1, dtype=torch.int64)  # everyone's: two segments
    ids = torch.cat([first, torch.randint(1, E - 1, (T, 1), generator=generator)], 1)
    grad = torch.randn(T, H, generator=generator).to(dtype)
    with threads(1):
        one = run(inputs, ids, grad, **options)
    with threads(3), always_spread():
        assert_same_bits(run(inputs, ids, grad, **options), one, "with three threads")
    assert_same_bits(run(inputs, ids, grad, save_hidden=False, **options), one, "recomputed")
    for name in NAMES[2:]:
        assert one[f"grad of {name}"][-1].eq(0).all(), f"{name} of an expert without tokens"
    chosen = [3, 97, 500, 649]
    part = {**inputs, "x": inputs["x"][chosen], "weights": inputs["weights"][chosen]}
    alone = run(part, ids[chosen], grad[chosen], **options)
    for label in ("output 0", "grad of x", "grad of weights"):
        assert_same_bits({label: alone[label]}, {label: one[label][chosen]}, "alone")


def test_layouts_are_one_function(isa: str) -> None:
    """The same weights, stored in every way, give the same bits forward."""
    options: dict[str, Any] = {"activation": "gelu_tanh"}
    inputs = inputs_of(3, torch.float32, T=40, E=3, H=50, I=70, K=2, options=options)
    ids = torch.randint(0, 3, (40, 2))
    given = {name: inputs[name] for name in ("x", "weights", "w_in", "w_out", "b_in", "b_out")}
    plain = F.moe_experts(ids=ids, **given, **options)

    def pairs(tensor: Tensor) -> Tensor:
        return torch.stack(tensor.chunk(2, dim=1), dim=2).flatten(1, 2)

    beside = {**given, "w_in": pairs(given["w_in"]), "b_in": pairs(given["b_in"])}
    for transposed in (False, True):
        for one, interleaved in ((given, False), (beside, True)):
            turned = dict(one)
            if transposed:
                turned |= {name: one[name].mT.contiguous() for name in ("w_in", "w_out")}
            y = F.moe_experts(
                ids=ids, interleaved=interleaved, transposed=transposed, **turned, **options
            )
            assert torch.equal(y, plain)


@pytest.mark.parametrize(
    "wanted", [*((name,) for name in NAMES), ("x", "w_out"), ("b_in", "w_in")], ids=str
)
@pytest.mark.parametrize("saved", [True, False])
def test_gradients_that_nobody_wants_cost_nothing(wanted: tuple[str, ...], saved: bool) -> None:
    options: dict[str, Any] = {"activation": "gelu", "interleaved": True}
    inputs = inputs_of(6, torch.float32, T=20, E=3, H=12, I=10, K=2, options=options)
    ids, grad = torch.randint(0, 3, (20, 2)), torch.randn(20, 12)
    together = run(inputs, ids, grad, **options)
    x, weights, w_in, w_out, b_in, b_out = (inputs[name] for name in NAMES)
    biases = {"b_in": b_in, "b_out": b_out}
    _, hidden = torch.ops.fulgurite._moe_experts_forward(
        x, ids, weights, w_in, w_out, **biases, **options
    )
    mask = [name in wanted for name in NAMES]
    grads = torch.ops.fulgurite._moe_experts_backward(
        *(grad, x, ids, weights, w_in, w_out, hidden if saved else None),
        **biases,
        **options,
        output_mask=mask,
    )
    for name, tensor in zip(NAMES, grads, strict=True):
        if name in wanted:
            assert_same_bits({name: tensor}, {name: together[f"grad of {name}"]})
        else:
            assert tensor.shape == (0,)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_in_one_token_stays_there(isa: str, activation: str) -> None:
    options: dict[str, Any] = {"activation": activation}
    if activation == "swiglu_oai":
        options["limit"] = 1.0
    inputs = inputs_of(5, torch.float32, T=40, E=3, H=20, I=12, K=2, options=options)
    inputs["x"][7] = float("nan")
    ids = torch.randint(0, 3, (40, 2))
    results = run(inputs, ids, torch.randn(40, 20), **options)
    others = torch.arange(40) != 7
    assert results["output 0"][7].isnan().all()
    for label in ("output 0", "grad of x", "grad of weights"):
        assert results[label][others].isfinite().all()


def test_weights_are_read_and_left_alone(isa: str) -> None:
    options: dict[str, Any] = {"interleaved": True, "transposed": True}
    inputs = inputs_of(8, torch.bfloat16, T=30, E=3, H=20, I=18, K=2, options=options)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    run(inputs, torch.randint(0, 3, (30, 2)), torch.randn(30, 20).bfloat16(), **options)
    assert_same_bits(inputs, before)
