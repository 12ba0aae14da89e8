"""AdamW and loss scaling against torch's own: the step, the whole pipeline, 16 and 8 bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from fulgurite.amp import LossScaler
from fulgurite.bench.harness import Case, MemoryCase
from fulgurite.optim import AdamW
from fulgurite.optim._codes import BLOCK, dynamic_map

MILLION = 1 << 20
Sizes = tuple[int, int]  # tensors, elements of each


def _parameters(sizes: Sizes, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    count, size = sizes
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for _ in range(count):
        parameter = torch.randn(size, generator=generator).to(dtype).requires_grad_()
        parameter.grad = torch.randn(size, generator=generator).to(dtype)
        parameters.append(parameter)
    return parameters


def _named(sizes: Sizes) -> str:
    count, size = sizes
    return f"{count} × {size}"


def _step(sizes: Sizes, baseline: str, **options: Any) -> Case:
    ours = AdamW(_parameters(sizes), lr=1e-3)
    plain = torch.optim.AdamW(_parameters(sizes), lr=1e-3, **options)
    return Case("step", _named(sizes), baseline, ours.step, plain.step)


def _clipped(sizes: Sizes) -> Case:
    ours = AdamW(_parameters(sizes), lr=1e-3, max_grad_norm=1.0)
    parameters = _parameters(sizes)
    plain = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        plain.step()

    run: Callable[[], Any] = ours.step
    return Case("clip + step", _named(sizes), "clip_grad_norm_, fused", run, step)


def _scaler(kind: type[GradScaler]) -> GradScaler:
    """A scale of 1, so that unscaling the same gradients again and again leaves them alone."""
    scaler = kind("cpu", init_scale=1.0, growth_interval=1 << 30)
    scaler.scale(torch.ones(()))
    return scaler


def _pipeline(sizes: Sizes) -> Case:
    """float32 gradients: unscale, clip, step, copy to bfloat16."""

    def low(parameters: list[Tensor]) -> list[Tensor]:
        return [torch.empty_like(p, dtype=torch.bfloat16) for p in parameters]

    mine, theirs = _parameters(sizes), _parameters(sizes)
    our_scaler, plain_scaler = _scaler(LossScaler), _scaler(GradScaler)
    ours = AdamW(mine, lr=1e-3, max_grad_norm=1.0, copies=low(mine))
    plain, copies = torch.optim.AdamW(theirs, lr=1e-3, fused=True), low(theirs)

    def our_step() -> None:
        our_scaler.step(ours)
        our_scaler.update()

    def plain_step() -> None:
        plain_scaler.unscale_(plain)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        plain_scaler.step(plain)
        plain_scaler.update()
        with torch.no_grad():
            torch._foreach_copy_(copies, theirs)

    return Case(
        "unscale + clip + step + bf16 copy",
        _named(sizes),
        "GradScaler, clip_grad_norm_, fused, foreach copy",
        our_step,
        plain_step,
    )


def _sixteen(sizes: Sizes, kind: str, **options: Any) -> Case:
    """bfloat16 parameters and gradients over float32 masters."""
    mine, theirs = _parameters(sizes, torch.bfloat16), _parameters(sizes, torch.bfloat16)
    our_scaler, plain_scaler = _scaler(LossScaler), _scaler(GradScaler)
    ours = AdamW(mine, lr=1e-3, max_grad_norm=1.0, **options)
    masters = [p.detach().float().requires_grad_() for p in theirs]
    wide = [torch.zeros_like(master) for master in masters]
    for master, grad in zip(masters, wide, strict=True):
        master.grad = grad
    holder = torch.optim.SGD(theirs)  # whose gradients the scaler unscales
    plain = torch.optim.AdamW(masters, lr=1e-3, fused=True)

    def our_step() -> None:
        our_scaler.step(ours)
        our_scaler.update()

    def plain_step() -> None:
        plain_scaler.unscale_(holder)
        with torch.no_grad():
            torch._foreach_copy_(wide, [p.grad for p in theirs if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        plain.step()
        with torch.no_grad():
            torch._foreach_copy_(theirs, masters)
        plain_scaler.update()

    return Case(
        f"bf16 parameters and gradients, {kind}",
        _named(sizes),
        "GradScaler, upcast, clip_grad_norm_, fused, copy back",
        our_step,
        plain_step,
    )


class _PlainCodes:
    """AdamW with 8-bit states in torch's operations: read codes, step, write codes."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.maps = [dynamic_map(True), dynamic_map(False)]
        self.middles = [(table[1:] + table[:-1]) / 2 for table in self.maps]
        blocks = [p.numel() // BLOCK for p in parameters]
        self.codes = [
            [torch.full((n, BLOCK), zero, dtype=torch.uint8) for n in blocks] for zero in (127, 0)
        ]
        self.scales = [[torch.zeros(n, 1) for n in blocks] for _ in range(2)]
        self.t = 0

    def read(self, which: int, i: int) -> Tensor:
        return self.maps[which][self.codes[which][i].int()].mul_(self.scales[which][i])

    def write(self, which: int, i: int, moment: Tensor) -> None:
        scale = moment.abs().amax(1, keepdim=True)
        quotient = moment / scale.clamp(min=1e-38)
        codes = torch.bucketize(quotient, self.middles[which], out_int32=True)
        self.codes[which][i].copy_(codes)
        self.scales[which][i] = scale

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        correction, root = 1 - 0.9**self.t, (1 - 0.999**self.t) ** 0.5
        for i, p in enumerate(self.parameters):
            assert p.grad is not None
            grad = p.grad.view(-1, BLOCK)
            m = self.read(0, i).lerp_(grad, 0.1)
            v = self.read(1, i).mul_(0.999).addcmul_(grad, grad, value=0.001)
            p.mul_(1 - 1e-3 * 1e-2)
            update = m / (v.sqrt() / root).add_(1e-8)
            p.sub_(update.view(-1), alpha=1e-3 / correction)
            self.write(0, i, m)
            self.write(1, i, v)


def _coded(sizes: Sizes) -> Case:
    ours = AdamW(_parameters(sizes), lr=1e-3, state_dtype="8bit")
    plain = _PlainCodes(_parameters(sizes))
    return Case("step, 8-bit states", _named(sizes), "torch operations", ours.step, plain.step)


def cases(quick: bool) -> Iterator[Case]:
    """Few large, many small and very many tiny tensors."""
    large, small, tiny = (32, MILLION), (500, 16384), (2000, 1024)
    if quick:
        large, small, tiny = (4, MILLION), (100, 16384), (200, 1024)
    for sizes in (large, small, tiny):
        yield _step(sizes, "fused=True", fused=True)
        yield _step(sizes, "default")
        yield _clipped(sizes)
        yield _pipeline(sizes)
    yield _sixteen(large, "float32 masters", master="fp32")
    yield _sixteen(large, "split masters", master="split")
    yield _sixteen(large, "split masters, bf16 moments", master="split", state_dtype=torch.bfloat16)
    yield _sixteen(large, "stochastic rounding", stochastic_rounding=True)
    yield _coded((4, MILLION))


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """A step with clipping."""
    sizes = (4, MILLION) if quick else (32, MILLION)
    ours, plain = AdamW(_parameters(sizes), lr=1e-3, max_grad_norm=1.0), _parameters(sizes)
    step = torch.optim.AdamW(plain, lr=1e-3, fused=True).step

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(plain, 1.0)
        step()

    ours.step()  # makes the states
    clip_and_step()
    yield MemoryCase(
        "clip + step", _named(sizes), "clip_grad_norm_, fused", ours.step, clip_and_step
    )
