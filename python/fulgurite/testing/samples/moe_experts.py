"""Sample calls of the experts and of the grouped product.

T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import moe_experts as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.moe import normal, random_ids

# ---------------------------------------------------------------- experts


def experts_call(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    *,
    T: int,
    K: int,
    E: int,
    H: int,
    I: int,
    low: int = 0,
    gated: bool = True,
    transposed: bool = False,
    weights_dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """Random x, ids, weights, w_in and w_out; the weights keep activations near 1."""
    x = normal(generator, dtype, device, T, H)
    ids = random_ids(generator, device, T, K, E, low=low)
    weights = torch.rand(T, K, generator=generator).to(device, weights_dtype or dtype)
    w_in = normal(generator, torch.float32, device, E, 2 * I if gated else I, H) * max(H, 1) ** -0.5
    w_out = normal(generator, torch.float32, device, E, H, I) * max(I, 1) ** -0.5
    if transposed:
        w_in, w_out = w_in.mT.contiguous(), w_out.mT.contiguous()
    return x, ids, weights, w_in.to(dtype), w_out.to(dtype)


def moe_experts_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def call(**sizes: Any) -> tuple[Tensor, ...]:
        return experts_call(generator, dtype, device, **sizes)

    def biases(E: int, width: int, H: int) -> dict[str, Tensor]:
        return {
            "b_in": normal(generator, dtype, device, E, width),
            "b_out": normal(generator, dtype, device, E, H),
        }

    yield Sample("gated", call(T=10, K=2, E=4, H=16, I=24, weights_dtype=wide), {})
    oai = {"activation": "swiglu_oai", "alpha": 1.702, "limit": 1.5}
    turned = {"interleaved": True, "transposed": True}
    yield Sample(
        "oai_recomputed_sentinels",
        call(T=9, K=3, E=5, H=12, I=7, low=-1, transposed=True),
        {**biases(5, 14, 12), **oai, **turned, "save_hidden": False},
    )
    yield Sample("across_tiles", call(T=150, K=2, E=3, H=70, I=80, weights_dtype=wide), {})
    yield Sample(
        "gelu_not_gated",
        call(T=40, K=2, E=3, H=33, I=71, gated=False, low=-1),
        {**biases(3, 71, 33), "activation": "gelu", "gated": False},
    )
    yield Sample(
        "gelu_tanh_transposed",
        call(T=110, K=2, E=3, H=40, I=75, transposed=True, weights_dtype=wide),
        {"activation": "gelu_tanh", **turned},
    )
    x, ids, weights, w_in, w_out = call(T=6, K=2, E=9, H=5, I=3)
    yield Sample(
        "relu2_unused_experts",
        (x, ids.long() % 3, weights, w_in, w_out),
        {
            "activation": "relu2",
            "interleaved": True,
            "b_out": normal(generator, dtype, device, 9, 5),
        },
    )
    yield Sample(
        "relu_one_expert",
        call(T=5, K=1, E=1, H=8, I=8, gated=False, transposed=True),
        {"activation": "relu", "gated": False, "transposed": True},
    )
    yield Sample("no_tokens", call(T=0, K=2, E=3, H=4, I=4), biases(3, 8, 4))
    yield Sample("no_hidden", call(T=3, K=2, E=3, H=4, I=0), biases(3, 0, 4))


def moe_experts_errors(device: torch.device) -> Iterator[ErrorSample]:
    generator = torch.Generator().manual_seed(0)
    tensors = experts_call(generator, torch.float32, device, T=5, K=2, E=3, H=8, I=4)
    x, ids, weights, w_in, w_out = tensors
    changed: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": ((x.int(), ids, weights, w_in, w_out), TypeError, "x"),
        "ids_dtype": ((x, ids.float(), weights, w_in, w_out), TypeError, "ids"),
        "weights_dtype": ((x, ids, weights.half(), w_in, w_out), TypeError, "weights"),
        "w_in_dtype": ((x, ids, weights, w_in.half(), w_out), TypeError, "w_in"),
        "w_out_dtype": ((x, ids, weights, w_in, w_out.double()), TypeError, "w_out"),
        "x_shape": ((x[0], ids, weights, w_in, w_out), RuntimeError, "x"),
        "ids_shape": ((x, ids[:4], weights, w_in, w_out), RuntimeError, "ids"),
        "weights_shape": ((x, ids, weights[:, :1], w_in, w_out), RuntimeError, "weights"),
        "w_in_shape": ((x, ids, weights, w_in[:, :7], w_out), RuntimeError, "w_in"),
        "w_in_experts": ((x, ids, weights, w_in[:2], w_out), RuntimeError, "w_out"),
        "w_out_shape": ((x, ids, weights, w_in, w_out[:, :7]), RuntimeError, "w_out"),
    }
    for name, (args, error, match) in changed.items():
        yield ErrorSample(name, args, {}, error, match)
    b_in, b_out = torch.zeros(3, 8, device=device), torch.zeros(3, 8, device=device)
    oai = {"activation": "swiglu_oai"}
    options: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
        "b_in_dtype": ({"b_in": b_in.half()}, TypeError, "b_in"),
        "b_out_dtype": ({"b_out": b_out.double()}, TypeError, "b_out"),
        "b_in_shape": ({"b_in": b_in[:, :4]}, RuntimeError, "b_in"),
        "b_out_shape": ({"b_out": b_out[:2]}, RuntimeError, "b_out"),
        "not_gated_shape": ({"gated": False}, RuntimeError, "w_in"),
        "transposed_shape": ({"transposed": True}, RuntimeError, "w_in"),
        "activation": ({"activation": "tanh"}, ValueError, "activation"),
        "alpha": ({"alpha": 1.7}, ValueError, "alpha"),
        "limit": ({"limit": 7.0}, ValueError, "limit"),
        "negative_limit": ({**oai, "limit": -1.0}, ValueError, "limit"),
    }
    for name, (kwargs, error, match) in options.items():
        yield ErrorSample(name, tensors, kwargs, error, match)
    half = (x, ids, weights, w_in[:, :4], w_out)
    yield ErrorSample("oai_not_gated", half, {**oai, "gated": False}, ValueError, "gated")
    both = {"gated": False, "interleaved": True}
    yield ErrorSample("interleaved_not_gated", half, both, ValueError, "interleaved")
    half_biased = {"gated": False, "b_in": b_in}
    yield ErrorSample("b_in_not_gated", half, half_biased, RuntimeError, "b_in")


# ---------------------------------------------------------------- grouped products


def moe_grouped_mm_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def call(
        counts: list[int], K: int, N: int, *, past: int = 0, transposed: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        offsets = torch.tensor([0, *counts], device=device).cumsum(0)
        shape = (len(counts), K, N) if transposed else (len(counts), N, K)
        weight = normal(generator, torch.float32, device, *shape) * max(K, 1) ** -0.5
        return normal(generator, dtype, device, sum(counts) + past, K), weight.to(dtype), offsets

    def bias(E: int, N: int) -> dict[str, Tensor]:
        return {"bias": normal(generator, dtype, device, E, N)}

    yield Sample("plain", call([5, 0, 7], 12, 9, past=2), {})
    turned = {"transposed": True}
    yield Sample(
        "biased_transposed", call([4, 9], 7, 13, transposed=True), {**bias(2, 13), **turned}
    )
    yield Sample("across_tiles", call([130, 3, 60], 300, 140), bias(3, 140))
    yield Sample("no_rows", call([0, 0], 4, 5), bias(2, 5))
    yield Sample("no_depth", call([2, 1], 0, 3), bias(2, 3))


def moe_grouped_mm_errors(device: torch.device) -> Iterator[ErrorSample]:
    x, weight = torch.zeros(6, 4, device=device), torch.zeros(2, 3, 4, device=device)
    bias = torch.zeros(2, 3, device=device)

    def offsets(*numbers: int) -> Tensor:
        return torch.tensor(numbers, device=device)

    ends = offsets(0, 2, 6)
    cases: dict[str, tuple[tuple[Tensor, ...], dict[str, Any], type[Exception], str]] = {
        "integers": ((x.int(), weight, ends), {}, TypeError, "x"),
        "weight_dtype": ((x, weight.half(), ends), {}, TypeError, "weight"),
        "offsets_dtype": ((x, weight, ends.int()), {}, TypeError, "offsets"),
        "bias_dtype": ((x, weight, ends), {"bias": bias.half()}, TypeError, "bias"),
        "one_dim": ((x[0], weight, ends), {}, RuntimeError, "x"),
        "weight_dims": ((x, weight[0], ends), {}, RuntimeError, "weight"),
        "depth": ((x[:, :3], weight, ends), {}, RuntimeError, "weight"),
        "transposed": ((x, weight, ends), {"transposed": True}, RuntimeError, "weight"),
        "offsets_shape": ((x, weight, ends[:2]), {}, RuntimeError, "offsets"),
        "bias_shape": ((x, weight, ends), {"bias": bias[:1]}, RuntimeError, "bias"),
        "not_from_0": ((x, weight, offsets(1, 2, 6)), {}, RuntimeError, "start at 0"),
        "falling": ((x, weight, offsets(0, 4, 3)), {}, RuntimeError, "rise"),
        "too_far": ((x, weight, offsets(0, 2, 7)), {}, RuntimeError, "at most 6"),
    }
    for name, (args, kwargs, error, match) in cases.items():
        yield ErrorSample(name, args, kwargs, error, match)


OPERATORS = (
    Operator(
        name="moe_experts",
        samples=moe_experts_samples,
        errors=moe_experts_errors,
        reference=reference.moe_experts,
        differentiable=(0, 2, 3, 4, "b_in", "b_out"),
        autocast="lower",
        autocast_args=(0, 3, 4, "b_in", "b_out"),
    ),
    Operator(
        name="moe_grouped_mm",
        samples=moe_grouped_mm_samples,
        errors=moe_grouped_mm_errors,
        reference=reference.moe_grouped_mm,
        differentiable=(0, 1, "bias"),
        autocast="lower",
    ),
)
