"""Attention against torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fulgurite.bench.harness import Case

SIZES = [(512, 64), (1024, 64), (1024, 128), (2048, 64), (2048, 128), (4096, 64)]
QUICK = [(512, 64)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _inputs(S: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, 8, S, D, generator=generator).to(dtype).requires_grad_() for _ in range(3)
    ]


def _pair(S: int, D: int, dtype: torch.dtype, causal: bool) -> Iterator[Case]:
    q, k, v = _inputs(S, D, dtype)
    grad = torch.randn(q.shape).to(dtype)
    mask = "causal" if causal else "no mask"
    shape = f"B1 H8 S{S} D{D}"

    def ours() -> Tensor:
        out: Tensor = torch.ops.fulgurite.attention(q, k, v, causal=causal)[0]
        return out

    def plain() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=causal)

    def forward(side) -> None:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            side()

    out_ours, out_plain = ours(), plain()
    name = _name(dtype)
    yield Case(
        f"{name} forward, {mask}", shape, "SDPA", lambda: forward(ours), lambda: forward(plain)
    )
    yield Case(
        f"{name} backward, {mask}",
        shape,
        "SDPA",
        lambda: torch.autograd.grad(out_ours, (q, k, v), grad, retain_graph=True),
        lambda: torch.autograd.grad(out_plain, (q, k, v), grad, retain_graph=True),
    )


def _window(S: int, D: int, dtype: torch.dtype, window: int) -> Iterator[Case]:
    q, k, v = (x.detach() for x in _inputs(S, D, dtype))
    i = torch.arange(S)
    mask = (i[:, None] >= i) & (i[:, None] - window < i)
    name, shape = _name(dtype), f"B1 H8 S{S} D{D} window {window}"

    def ours() -> None:
        torch.ops.fulgurite.attention(q, k, v, causal=True, window_left=window - 1)

    def causal() -> None:
        scaled_dot_product_attention(q, k, v, is_causal=True)

    def masked() -> None:
        scaled_dot_product_attention(q, k, v, attn_mask=mask)

    yield Case(f"{name} forward, window", shape, "SDPA causal", ours, causal)
    yield Case(f"{name} forward, window against mask", shape, "SDPA with the mask", ours, masked)


def cases(quick: bool) -> Iterator[Case]:
    """Forward and backward alone, both with and without the causal mask, and a sliding window."""
    for dtype in (torch.float32, torch.bfloat16):
        for S, D in QUICK if quick else SIZES:
            for causal in (False, True):
                yield from _pair(S, D, dtype, causal)
        yield from _window(1024 if quick else 4096, 64, dtype, 256)
    yield from _pair(512, 64, torch.float16, True)
