"""Sample calls of the moe family.

T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import moe as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample


def normal(
    generator: torch.Generator, dtype: torch.dtype, device: torch.device, *shape: int
) -> Tensor:
    return torch.randn(shape, generator=generator).to(device, dtype)


def random_ids(
    generator: torch.Generator, device: torch.device, T: int, K: int, E: int, *, low: int = 0
) -> Tensor:
    """Distinct experts for each token; with ``low`` = −1 some are sentinels."""
    ids = torch.rand(T, E - low, generator=generator).argsort(1)[:, :K] + low
    return ids.to(device, torch.int32)


# ---------------------------------------------------------------- routing


def moe_route_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def logits(T: int, E: int) -> Tensor:
        return normal(generator, dtype, device, T, E)

    def bias(E: int) -> Tensor:
        return (torch.randn(E, generator=generator) * 0.1).to(device)

    yield Sample("softmax", (logits(9, 8), 2), {"scale": 1.5})
    yield Sample(
        "sigmoid_grouped",
        (logits(11, 24), 4),
        {"bias": bias(24), "score": "sigmoid", "n_group": 6, "topk_group": 3, "scale": 2.5},
    )
    yield Sample("softmax_over_all", (logits(7, 13), 5), {"renormalize": False})
    yield Sample(
        "softmax_topk_masked",
        (logits(10, 40), 40),
        {
            "score": "softmax_topk",
            "token_mask": (torch.rand(10, generator=generator) < 0.6).to(device),
        },
    )
    forced = torch.randint(-1, 7, (8, 3), generator=generator).to(device)
    yield Sample(
        "sqrtsoftplus_forced", (logits(8, 6), 3), {"score": "sqrtsoftplus", "forced_ids": forced}
    )
    yield Sample(
        "sigmoid_raw_best_group",
        (logits(300, 64), 6),
        {
            "bias": bias(64),
            "score": "sigmoid",
            "renormalize": False,
            "n_group": 8,
            "topk_group": 2,
            "group_score": "max",
        },
    )
    yield Sample("one_expert", (logits(3, 1), 1), {})
    yield Sample("no_tokens", (logits(0, 8), 2), {"score": "sigmoid"})


def moe_route_errors(device: torch.device) -> Iterator[ErrorSample]:
    logits, bias = torch.zeros(5, 8, device=device), torch.zeros(8, device=device)
    ids, mask = torch.zeros(5, 2, dtype=torch.int64), torch.ones(5, dtype=torch.bool)
    sigmoid = {"score": "sigmoid"}
    cases: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
        "integers": ((logits.int(), 2), {}, TypeError, "logits"),
        "bias_dtype": ((logits, 2), {**sigmoid, "bias": bias.int()}, TypeError, "bias"),
        "mask_dtype": ((logits, 2), {"token_mask": mask.int()}, TypeError, "token_mask"),
        "ids_dtype": ((logits, 2), {"forced_ids": ids.float()}, TypeError, "forced_ids"),
        "one_dim": ((bias, 2), {}, RuntimeError, "logits"),
        "bias_shape": ((logits, 2), {**sigmoid, "bias": bias[:7]}, RuntimeError, "bias"),
        "mask_shape": ((logits, 2), {"token_mask": mask[:4]}, RuntimeError, "token_mask"),
        "ids_shape": ((logits, 3), {"forced_ids": ids}, RuntimeError, "forced_ids"),
        "k_zero": ((logits, 0), {}, ValueError, "k in"),
        "k_large": ((logits, 9), {}, ValueError, "k in"),
        "score": ((logits, 2), {"score": "relu"}, ValueError, "score"),
        "bias_with_softmax": ((logits, 2), {"bias": bias}, ValueError, "bias"),
        "group_score": ((logits, 2), {"group_score": "sum"}, ValueError, "group_score"),
        "n_group": ((logits, 2), {"n_group": 3}, ValueError, "n_group"),
        "n_group_zero": ((logits, 2), {"n_group": 0}, ValueError, "n_group"),
        "topk_group": ((logits, 2), {"n_group": 2, "topk_group": 3}, ValueError, "topk_group"),
        "too_few": ((logits, 3), {"n_group": 4}, ValueError, "topk_group"),
    }
    for name, (args, kwargs, error, match) in cases.items():
        yield ErrorSample(name, args, kwargs, error, match)


# ---------------------------------------------------------------- losses


def moe_balance_loss_samples(
    dtype: torch.dtype, device: torch.device, seed: int
) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def call(T: int, K: int, E: int, low: int = 0) -> tuple[Tensor, Tensor]:
        logits = normal(generator, dtype, device, T, E)
        return logits, random_ids(generator, device, T, K, E, low=low)

    def mask(T: int) -> Tensor:
        return (torch.rand(T, generator=generator) < 0.7).to(device)

    yield Sample("switch", call(12, 2, 8), {})
    yield Sample(
        "sigmoid_sequence",
        call(13, 3, 6),
        {
            "score": "sigmoid",
            "kind": "sequence",
            "sequence_ids": torch.randint(0, 4, (13,), generator=generator).to(device),
            "token_mask": mask(13),
        },
    )
    yield Sample("hf_sentinels", call(9, 3, 5, low=-1), {"kind": "hf", "token_mask": mask(9)})
    yield Sample("gshard", call(20, 2, 17), {"kind": "gshard", "score": "sqrtsoftplus"})
    yield Sample("cv2_many", call(600, 2, 40), {"kind": "cv2"})
    yield Sample("cv2_one_expert", call(5, 1, 1), {"kind": "cv2"})
    nobody = torch.zeros(4, dtype=torch.bool, device=device)
    yield Sample("all_masked", call(4, 2, 3), {"token_mask": nobody})
    yield Sample("no_tokens", call(0, 2, 3), {})


def moe_balance_loss_errors(device: torch.device) -> Iterator[ErrorSample]:
    logits, ids = torch.zeros(5, 8, device=device), torch.zeros(5, 2, dtype=torch.int32)
    sequence = torch.zeros(5, dtype=torch.int64, device=device)
    mask = torch.ones(5, dtype=torch.bool, device=device)
    per_sequence: dict[str, Any] = {"kind": "sequence", "sequence_ids": sequence}
    cases: dict[str, tuple[tuple[Tensor, Tensor], dict[str, Any], type[Exception], str]] = {
        "integers": ((logits.int(), ids), {}, TypeError, "logits"),
        "ids_dtype": ((logits, ids.float()), {}, TypeError, "ids"),
        "mask_dtype": ((logits, ids), {"token_mask": mask.int()}, TypeError, "token_mask"),
        "ids_shape": ((logits, ids[:4]), {}, RuntimeError, "ids"),
        "mask_shape": ((logits, ids), {"token_mask": mask[:4]}, RuntimeError, "token_mask"),
        "sequence_outside": (
            (logits, ids),
            {**per_sequence, "sequence_ids": sequence + 5},
            RuntimeError,
            "sequence_ids",
        ),
        "score": ((logits, ids), {"score": "relu"}, ValueError, "score"),
        "kind": ((logits, ids), {"kind": "l2"}, ValueError, "kind"),
        "no_sequence": ((logits, ids), {"kind": "sequence"}, ValueError, "sequence_ids"),
        "sequence_with_switch": (
            (logits, ids),
            {"sequence_ids": sequence},
            ValueError,
            "sequence_ids",
        ),
    }
    for name, (args, kwargs, error, match) in cases.items():
        yield ErrorSample(name, args, kwargs, error, match)


def moe_z_loss_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    yield Sample("plain", (normal(generator, dtype, device, 12, 8),), {})
    mask = (torch.rand(15, generator=generator) < 0.7).to(device)
    yield Sample("masked", (normal(generator, dtype, device, 15, 13) * 3,), {"token_mask": mask})
    yield Sample("many", (normal(generator, dtype, device, 700, 40),), {})
    yield Sample("no_tokens", (normal(generator, dtype, device, 0, 4),), {})


def moe_z_loss_errors(device: torch.device) -> Iterator[ErrorSample]:
    logits, mask = torch.zeros(5, 8, device=device), torch.ones(5, dtype=torch.bool, device=device)
    yield ErrorSample("integers", (logits.int(),), {}, TypeError, "logits")
    yield ErrorSample("mask_dtype", (logits,), {"token_mask": mask.int()}, TypeError, "token_mask")
    yield ErrorSample("one_dim", (logits[0],), {}, RuntimeError, "logits")
    yield ErrorSample("shape", (logits,), {"token_mask": mask[:4]}, RuntimeError, "token_mask")


def moe_update_bias_samples(
    dtype: torch.dtype, device: torch.device, seed: int
) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def call(E: int) -> tuple[Tensor, Tensor, float]:
        counts = torch.randint(0, 9, (E,), generator=generator).to(device)
        return normal(generator, dtype, device, E), counts, 1e-2

    yield Sample("sign", call(8), {})
    yield Sample("proportional_centred", call(13), {"rule": "proportional", "center": True})
    bias, counts, rate = call(5)
    yield Sample("int32_centred", (bias, counts.int(), rate), {"center": True})
    yield Sample("no_counts", (bias, torch.zeros_like(counts), rate), {"rule": "proportional"})
    yield Sample("no_experts", call(0), {})


def moe_update_bias_errors(device: torch.device) -> Iterator[ErrorSample]:
    bias, counts = torch.zeros(4, device=device), torch.arange(4, device=device)
    yield ErrorSample("integers", (bias.int(), counts, 0.1), {}, TypeError, "bias")
    yield ErrorSample("counts_dtype", (bias, counts.float(), 0.1), {}, TypeError, "counts")
    yield ErrorSample("two_dims", (bias[None], counts, 0.1), {}, RuntimeError, "bias")
    yield ErrorSample("shape", (bias, counts[:3], 0.1), {}, RuntimeError, "counts")
    yield ErrorSample("rule", (bias, counts, 0.1), {"rule": "step"}, ValueError, "rule")


OPERATORS = (
    Operator(
        name="moe_route",
        samples=moe_route_samples,
        errors=moe_route_errors,
        reference=reference.moe_route,
        differentiable=(0,),
        exact=True,
        autocast="float32",
    ),
    Operator(
        name="moe_balance_loss",
        samples=moe_balance_loss_samples,
        errors=moe_balance_loss_errors,
        reference=reference.moe_balance_loss,
        differentiable=(0,),
        exact=True,
        autocast="float32",
    ),
    Operator(
        name="moe_z_loss",
        samples=moe_z_loss_samples,
        errors=moe_z_loss_errors,
        reference=reference.moe_z_loss,
        differentiable=(0,),
        autocast="float32",
    ),
    Operator(
        name="moe_update_bias_",
        samples=moe_update_bias_samples,
        errors=moe_update_bias_errors,
        reference=reference.moe_update_bias_,
        mutates=(0,),
        exact=True,
    ),
)
