"""Calls of attention differentiated twice, with everything that hides or changes scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common_checks import DEVICE, Results, threads
from fulgurite.testing import to_float64
from fulgurite.testing.references.attention import attention
from fulgurite.testing.samples.attention import qkv

Attention = Callable[..., tuple[Tensor, Tensor]]
attention_op = torch.ops.fulgurite.attention

SMALL = {"B": 2, "Hq": 2, "Hkv": 1, "N": 3, "M": 4, "D": 2, "Dv": 3}
# Beyond a tile, of 128 rows over the heads of a group.
MIDDLE = {"B": 2, "Hq": 4, "Hkv": 2, "N": 70, "M": 60, "D": 8, "Dv": 6}
LARGE = {"B": 2, "Hq": 4, "Hkv": 2, "N": 150, "M": 140, "D": 6, "Dv": 5}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def coin(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.7


def hiding_bias(generator: torch.Generator, *shape: int) -> Tensor:
    return normal(generator, *shape).masked_fill(~coin(generator, *shape), -math.inf)


# What a case adds to query, key and value of the sizes B, Hq, N, M.
CASES: dict[str, Callable[[torch.Generator, int, int, int, int], dict[str, Any]]] = {
    "plain": lambda g, B, H, N, M: {},
    "scale": lambda g, B, H, N, M: {"scale": 0.7},
    "causal": lambda g, B, H, N, M: {"causal": True},
    "causal_top_left": lambda g, B, H, N, M: {"causal": True, "align": "top_left"},
    "window": lambda g, B, H, N, M: {"window_left": 1, "window_right": 0},
    "window_sink_tokens": lambda g, B, H, N, M: {
        "causal": True,
        "window_left": 1,
        "sink_tokens": 2,
    },
    "chunks": lambda g, B, H, N, M: {"chunk_size": 3},
    "mask": lambda g, B, H, N, M: {"mask": coin(g, B, H, N, M)},
    "mask_of_keys": lambda g, B, H, N, M: {"mask": coin(g, B, 1, 1, M)},
    "mask_of_rows": lambda g, B, H, N, M: {"mask": coin(g, N, 1)},
    "mask_of_nothing": lambda g, B, H, N, M: {"mask": torch.zeros(1, dtype=torch.bool)},
    "layout": lambda g, B, H, N, M: {
        "block_layout": coin(g, H, -(-N // 2), -(-M // 2)),
        "block_size": 2,
    },
    "layout_of_all_heads": lambda g, B, H, N, M: {
        "block_layout": coin(g, 1, -(-N // 3), -(-M // 3)).byte(),
        "block_size": 3,
    },
    "bias": lambda g, B, H, N, M: {"bias": hiding_bias(g, B, H, N, M)},
    "bias_periodic": lambda g, B, H, N, M: {"bias": hiding_bias(g, B // 2, 1, N, M)},
    "bias_of_keys": lambda g, B, H, N, M: {"bias": normal(g, H, 1, M), "causal": True},
    "bias_of_rows": lambda g, B, H, N, M: {"bias": normal(g, N, 1)},
    "sink": lambda g, B, H, N, M: {"sink": normal(g, H), "causal": True},
    "alibi": lambda g, B, H, N, M: {"alibi_slopes": normal(g, H).abs()},
    "alibi_of_batch": lambda g, B, H, N, M: {"alibi_slopes": normal(g, B, H), "causal": True},
    "softcap": lambda g, B, H, N, M: {"softcap": 0.8},
    "softcap_bias_sink": lambda g, B, H, N, M: {
        "softcap": 1.5,
        "bias": hiding_bias(g, 1, H, N, M),
        "sink": normal(g, H),
        "alibi_slopes": normal(g, H),
        "mask": coin(g, N, M),
    },
    "relu2": lambda g, B, H, N, M: {"score": "relu2", "score_scale": 0.5, "causal": True},
    "relu2_bias_softcap": lambda g, B, H, N, M: {
        "score": "relu2",
        "bias": hiding_bias(g, H, N, M),
        "softcap": 2.0,
    },
    "laplace": lambda g, B, H, N, M: {"score": "laplace", "score_scale": 0.5},
    "laplace_bias": lambda g, B, H, N, M: {"score": "laplace", "bias": hiding_bias(g, N, M)},
    "dropout": lambda g, B, H, N, M: {
        "dropout_p": 0.3,
        "philox": torch.tensor([123456789012345, (1 << 40) + 3]),
        "sink": normal(g, H),
    },
}


def make_case(
    case: str, sizes: dict[str, int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Results, dict[str, Any]]:
    """Differentiable inputs by name, and the other arguments."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(
        zip(("query", "key", "value"), qkv(generator, dtype, DEVICE, **sizes), strict=True)
    )
    kwargs = CASES[case](generator, *(sizes[name] for name in ("B", "Hq", "N", "M")))
    for name in ("bias", "sink"):
        if name in kwargs:
            tensors[name] = kwargs.pop(name).to(dtype)
    if "alibi_slopes" in kwargs and dtype != torch.float64:
        kwargs["alibi_slopes"] = kwargs["alibi_slopes"].float()
    return tensors, kwargs


def call(function: Attention, inputs: Results, kwargs: dict[str, Any]) -> list[Tensor]:
    """The outputs that have a gradient; the −inf of an empty row, which has none, replaced."""
    query, key, value = (inputs[name] for name in ("query", "key", "value"))
    added = {name: inputs[name] for name in ("bias", "sink") if name in inputs}
    out, lse = function(query, key, value, **added, **kwargs)
    outputs = [out] if kwargs.get("score", "softmax") != "softmax" else [out, lse]
    return [o.masked_fill(o.detach() == -math.inf, 0.0) for o in outputs]


def noise_like(tensors: dict[str, Tensor], seed: int) -> Results:
    generator = torch.Generator().manual_seed(seed)
    return {k: normal(generator, *t.shape).to(t.dtype) for k, t in tensors.items()}


def cotangents_for(inputs: Results, kwargs: dict[str, Any]) -> Results:
    """Random gradients of out and lse."""
    outputs = call(attention_op, inputs, kwargs)
    return noise_like({f"grad {i}": output for i, output in enumerate(outputs)}, seed=1)


def second_derivatives(
    function: Attention,
    inputs: Results,
    cotangents: Results,
    directions: Results,
    kwargs: dict[str, Any],
    wanted: tuple[str, ...] | None = None,
) -> Results:
    """Gradients of Σ direction·(first gradient), by inputs and by the cotangents of the outputs."""
    leaves = {k: t.detach().requires_grad_() for k, t in (inputs | cotangents).items()}
    outputs = call(function, {k: leaves[k] for k in inputs}, kwargs)
    first = torch.autograd.grad(
        outputs,
        [leaves[name] for name in directions],
        [leaves[name].to(o.dtype) for name, o in zip(cotangents, outputs, strict=True)],
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    labels = tuple(leaves) if wanted is None else wanted
    second = torch.autograd.grad(
        first,
        [leaves[label] for label in labels],
        [directions[name].to(g.dtype) for name, g in zip(directions, first, strict=True)],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(labels, second, strict=True))


def reference_of(
    inputs: Results, cotangents: Results, directions: Results, kwargs: dict[str, Any]
) -> Results:
    def wide(tensors: Results) -> Results:
        return {k: to_float64(t) for k, t in tensors.items()}

    kwargs = {k: to_float64(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    with threads(1):
        return second_derivatives(
            attention, wide(inputs), wide(cotangents), wide(directions), kwargs
        )
