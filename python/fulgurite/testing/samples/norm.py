"""Sample calls of rms_norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import norm as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.moe import normal


def rms_norm_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    low = torch.float64 if dtype == torch.float64 else torch.bfloat16

    def call(
        name: str, *shape: int, of: torch.dtype | None = dtype, **kwargs: Any
    ) -> tuple[str, Tensor, tuple[Tensor, ...], dict[str, Any]]:
        x = normal(generator, dtype, device, *shape)
        weight = () if of is None else (normal(generator, of, device, shape[-1]),)
        return name, x, weight, kwargs

    def sample(name: str, x: Tensor, weight: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Sample:
        return Sample(name, (x, *weight), kwargs)

    yield sample(*call("rows", 3, 5, 64))
    yield sample(*call("shifted", 7, 48, eps=1e-5, weight_shift=1.0))
    yield sample(*call("float32_weight", 2, 3, 33, of=wide))
    yield sample(*call("other_weight", 4, 20, of=low, weight_shift=0.5))
    yield sample(*call("no_weight", 2, 70, of=None, eps=0.25))
    yield sample(*call("one_row", 130))
    name, x, weight, kwargs = call("heads", 2, 3, 4, 16)
    yield sample(name, x.transpose(1, 2), weight, kwargs)
    name, x, weight, kwargs = call("columns", 19, 6, of=None)
    yield sample(name, x.t(), weight, kwargs)
    yield sample(*call("one_element", 5, 1, eps=1.0))
    yield sample(*call("blocks", 700, 40))
    yield sample(*call("wide", 3, 20000))
    yield sample(*call("no_rows", 0, 8))
    yield sample(*call("no_columns", 3, 0))


def rms_norm_errors(device: torch.device) -> Iterator[ErrorSample]:
    x, weight = torch.ones(2, 6, device=device), torch.ones(6, device=device)
    tensors: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": ((x.int(), weight), TypeError, "x of dtype"),
        "wider_weight": ((x, weight.double()), TypeError, "weight of dtype float32, bfloat16"),
        "narrow_weight": ((x.double(), weight), TypeError, "weight of dtype float64 beside"),
        "no_dims": ((x[0, 0], weight), RuntimeError, r"x of shape \[\.\.\., H\]"),
        "weight_dims": ((x, x), RuntimeError, r"weight of shape \[6\]"),
        "weight_size": ((x, weight[:5]), RuntimeError, r"weight of shape \[6\]"),
    }
    for name, (args, error, match) in tensors.items():
        yield ErrorSample(name, args, {}, error, match)
    yield ErrorSample("eps", (x, weight), {"eps": -1.0}, ValueError, "eps finite and >= 0")
    shift = {"weight_shift": float("inf")}
    yield ErrorSample("shift", (x, weight), shift, ValueError, "weight_shift finite")
    shift = {"weight_shift": 1.0}
    yield ErrorSample("shift_of_nothing", (x,), shift, ValueError, "0 without a weight")


OPERATORS = (
    Operator(
        name="rms_norm",
        samples=rms_norm_samples,
        errors=rms_norm_errors,
        reference=reference.rms_norm,
        differentiable=(0, 1),
    ),
)
