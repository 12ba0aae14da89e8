"""Sample calls of the amp family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import amp as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample


def gradients(
    dtype: torch.dtype, device: torch.device, seed: int, *shapes: tuple[int, ...]
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def scalar(value: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def grad_stats_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    inv_scale = {"inv_scale": scalar(2.0**-10, device)}
    yield Sample("scaled", (gradients(dtype, device, seed, (5, 7), (33,), (2, 3, 4)),), inv_scale)
    yield Sample("blocks", (gradients(dtype, device, seed, (3, 4099)),), {})
    bad = gradients(dtype, device, seed, (17,), (6,), (3, 9), (4,))
    bad[1][5] = torch.inf
    bad[2][2, 8] = torch.nan
    yield Sample("infinite", (bad,), {})
    strided = gradients(dtype, device, seed, (12, 10), (1, 8))
    strided = [strided[0].T.contiguous().T, strided[1].expand(5, 8)]
    yield Sample("strided", (strided,), inv_scale)
    yield Sample("no_elements", (gradients(dtype, device, seed, (0, 3), (2,)),), {})
    yield Sample("no_tensors", ([],), inv_scale)


def grad_stats_errors(device: torch.device) -> Iterator[ErrorSample]:
    grads = gradients(torch.float32, device, 0, (3,), (2, 2))
    half = {"inv_scale": scalar(1.0, device).half()}
    yield ErrorSample("grad_dtype", ([grads[0], grads[1].int()],), {}, TypeError, r"grads\[1\]")
    yield ErrorSample("inv_scale_dtype", (grads,), half, TypeError, "inv_scale")
    yield ErrorSample(
        "inv_scale_shape", (grads,), {"inv_scale": grads[0]}, RuntimeError, "inv_scale"
    )


def clip_multiplier_samples(
    dtype: torch.dtype, device: torch.device, seed: int
) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    norm_sq = 9 * torch.rand((), generator=generator, dtype=torch.float64).to(device) + 4
    yield Sample("clips", (norm_sq, 1.0), {})
    yield Sample(
        "clips_scaled", (norm_sq, 1.5), {"inv_scale": scalar(2.0**-16, device), "eps": 0.1}
    )
    yield Sample("leaves", (norm_sq, 100.0), {"inv_scale": scalar(0.3, device)})
    yield Sample("infinite_norm", (norm_sq * torch.inf, 1.0), {})
    yield Sample("nan_norm", (norm_sq * torch.nan, 1.0), {})
    yield Sample("zero_norm", (norm_sq * 0, 1.0), {"eps": 0.0})


def clip_multiplier_errors(device: torch.device) -> Iterator[ErrorSample]:
    norm_sq = scalar(4.0, device, torch.float64)
    yield ErrorSample("norm_dtype", (norm_sq.float(), 1.0), {}, TypeError, "norm_sq")
    yield ErrorSample("norm_shape", (norm_sq.expand(2), 1.0), {}, RuntimeError, "norm_sq")
    yield ErrorSample("max_norm", (norm_sq, -1.0), {}, ValueError, "max_norm")
    yield ErrorSample("eps", (norm_sq, 1.0), {"eps": -1.0}, ValueError, "eps")


def unscale_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    def tail(inv_scale: float) -> tuple[Tensor, Tensor]:
        return scalar(0.0, device), scalar(inv_scale, device)

    yield Sample(
        "power_of_two", (gradients(dtype, device, seed, (5, 7), (33,)), *tail(2.0**-3)), {}
    )
    bad = gradients(dtype, device, seed, (17,), (6,))
    bad[1][5] = torch.inf
    bad[0][0] = torch.nan
    yield Sample("infinite", (bad, *tail(0.3)), {})
    strided = gradients(dtype, device, seed, (12, 10))
    yield Sample("strided", ([strided[0].T.contiguous().T], *tail(0.7)), {})
    yield Sample("no_elements", (gradients(dtype, device, seed, (0, 3)), *tail(0.5)), {})
    yield Sample("no_tensors", ([], *tail(0.5)), {})


def unscale_errors(device: torch.device) -> Iterator[ErrorSample]:
    grads = gradients(torch.float32, device, 0, (3,), (2, 2))
    zero, one = scalar(0.0, device), scalar(1.0, device)
    yield ErrorSample("grad_dtype", ([grads[0].int()], zero, one), {}, TypeError, r"grads\[0\]")
    yield ErrorSample("found_inf_dtype", (grads, zero.int(), one), {}, TypeError, "found_inf")
    yield ErrorSample("inv_scale_dtype", (grads, zero, one.double()), {}, TypeError, "inv_scale")
    yield ErrorSample("found_inf_shape", (grads, grads[0], one), {}, RuntimeError, "found_inf")
    expanded = [grads[0], torch.ones(1, device=device).expand(4)]
    yield ErrorSample("overlapping", (expanded, zero, one), {}, RuntimeError, r"grads\[1\]")


def update_scale_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    scale = float(torch.rand((), generator=generator)) * 1000 + 1

    def call(value: float, tracker: int, tolerance: int, found: float) -> tuple[Tensor, ...]:
        return (
            scalar(value, device),
            torch.tensor(tracker, dtype=torch.int32, device=device),
            torch.tensor(tolerance, dtype=torch.int32, device=device),
            torch.tensor([5, 3, 1, 7], device=device),
            scalar(found, device),
        )

    yield Sample("grows", call(scale, 4, 1, 0.0), {"growth_interval": 5, "growth_factor": 1.7})
    yield Sample("backs_off", call(scale, 4, 1, 2.0), {"backoff_factor": 0.3})
    yield Sample("tolerates", call(scale, 4, 2, 1.0), {"max_hysteresis": 2})
    yield Sample("refills", call(scale, 4, 1, 0.0), {"max_hysteresis": 3, "refill": "clean"})
    yield Sample("keeps", call(scale, 4, 1, 0.0), {"max_hysteresis": 3, "refill": "growth"})
    yield Sample("floor", call(scale, 0, 1, 1.0), {"min_scale": scale})
    yield Sample(
        "ceiling", call(scale, 0, 1, 0.0), {"growth_interval": 1, "max_scale": 1.5 * scale}
    )
    yield Sample("never_infinite", call(3e38, 0, 1, 0.0), {"growth_interval": 1})


def update_scale_errors(device: torch.device) -> Iterator[ErrorSample]:
    scale, found = scalar(8.0, device), scalar(0.0, device)
    tracker, counters = torch.zeros((), dtype=torch.int32, device=device), torch.zeros(4).long()
    right: dict[str, Any] = {
        "scale": scale, "growth_tracker": tracker, "hysteresis": tracker + 1,
        "counters": counters, "found_inf": found,
    }  # fmt: skip

    def wrong(error: type[Exception], name: str, value: Any) -> ErrorSample:
        if name in right:
            return ErrorSample(
                f"{name}_{error.__name__}", tuple((right | {name: value}).values()), {}, error, name
            )
        return ErrorSample(name, tuple(right.values()), {name: value}, error, name)

    yield wrong(TypeError, "scale", scale.double())
    yield wrong(TypeError, "growth_tracker", tracker.long())
    yield wrong(TypeError, "hysteresis", tracker.long())
    yield wrong(TypeError, "counters", counters.int())
    yield wrong(TypeError, "found_inf", found.bool())
    yield wrong(RuntimeError, "scale", torch.ones(2))
    yield wrong(RuntimeError, "counters", counters[:3])
    yield wrong(ValueError, "growth_factor", 0.0)
    yield wrong(ValueError, "backoff_factor", -0.5)
    yield wrong(ValueError, "growth_interval", 0)
    yield wrong(ValueError, "max_hysteresis", 0)
    yield wrong(ValueError, "refill", "never")
    yield wrong(ValueError, "min_scale", -1.0)
    yield wrong(ValueError, "max_scale", -1.0)


OPERATORS = (
    Operator(
        name="grad_stats",
        samples=grad_stats_samples,
        errors=grad_stats_errors,
        reference=reference.grad_stats,
        exact=True,
    ),
    Operator(
        name="clip_multiplier",
        samples=clip_multiplier_samples,
        errors=clip_multiplier_errors,
        reference=reference.clip_multiplier,
        dtypes=(torch.float32,),
        exact=True,
    ),
    Operator(
        name="unscale_",
        samples=unscale_samples,
        errors=unscale_errors,
        reference=reference.unscale_,
        mutates=(0, 1),
        exact=True,
    ),
    Operator(
        name="update_scale_",
        samples=update_scale_samples,
        errors=update_scale_errors,
        reference=reference.update_scale_,
        dtypes=(torch.float32,),
        mutates=(0, 1, 2, 3),
        exact=True,
    ),
)
