"""Mixture of experts against the way transformers writes it in torch operations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, one_hot, silu, softmax

from fulgurite.bench.harness import Case

ops = torch.ops.fulgurite


def _route_softmax(T: int, E: int, k: int) -> Iterator[Case]:
    logits = torch.randn(T, E, requires_grad=True)
    grad = torch.randn(T, k)

    def ours() -> None:
        weights = ops.moe_route(logits, k)[0]
        weights.backward(grad)

    def plain() -> None:
        top, ids = softmax(logits, -1, dtype=torch.float32).topk(k, -1)
        torch.bincount(ids.flatten(), minlength=E)
        (top / top.sum(-1, keepdim=True)).backward(grad)

    shape = f"T{T} E{E} k{k}"
    yield Case("router softmax, forward + backward", shape, "softmax, topk, bincount", ours, plain)


def _route_sigmoid(T: int, E: int, k: int) -> Iterator[Case]:
    logits = torch.randn(T, E, requires_grad=True)
    bias = torch.randn(E) * 0.01
    grad = torch.randn(T, k)

    def ours() -> None:
        ops.moe_route(logits, k, score="sigmoid", bias=bias, scale=2.5)[0].backward(grad)

    def plain() -> None:
        scores = logits.sigmoid()
        ids = torch.topk(scores.detach() + bias, k, -1, sorted=False)[1]
        torch.bincount(ids.flatten(), minlength=E)
        top = scores.gather(1, ids)
        (top / (top.sum(-1, keepdim=True) + 1e-20) * 2.5).backward(grad)

    shape = f"T{T} E{E} k{k}"
    yield Case(
        "router sigmoid, forward + backward", shape, "sigmoid, topk, gather, bincount", ours, plain
    )


def _plan(T: int, E: int, k: int) -> Iterator[Case]:
    ids = torch.rand(T, E).topk(k)[1].int()

    def ours() -> None:
        ops.moe_plan(ids, E)

    def plain() -> None:
        flat = ids.flatten()
        order = torch.argsort(flat, stable=True)
        torch.empty_like(order).scatter_(0, order, torch.arange(order.numel()))
        torch.bincount(flat, minlength=E).cumsum(0)

    yield Case("plan", f"T{T} E{E} k{k}", "argsort, scatter, bincount", ours, plain)


def experts_plain(x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The grouped_mm experts of transformers 5.

    Sort, gather, two grouped products, weight, restore order, sum over k.
    """
    T, k = ids.shape
    E = w_in.size(0)
    flat = ids.flatten()
    order = torch.argsort(flat, stable=True)
    offsets = torch.cumsum(one_hot(flat.long(), E).sum(0), 0, dtype=torch.int32)
    gate, up = grouped_mm(x[order // k], w_in.transpose(1, 2), offs=offsets).chunk(2, -1)
    y = (
        grouped_mm(silu(gate) * up, w_out.transpose(1, 2), offs=offsets)
        * weights.flatten()[order, None]
    )
    restored: Tensor = y[torch.argsort(order)].view(T, k, -1).sum(1)
    return restored.to(x.dtype)


def _experts(T: int, H: int, I: int, E: int, k: int, dtype: torch.dtype) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()

    x, w_in, w_out = (
        random(T, H),
        random(E, 2 * I, H, scale=H**-0.5),
        random(E, H, I, scale=I**-0.5),
    )
    ids = torch.rand(T, E, generator=generator).topk(k)[1].int()
    weights = torch.rand(T, k, generator=generator).requires_grad_()
    grad = torch.randn(T, H, generator=generator).to(dtype)
    inputs = (x, weights, w_in, w_out)

    def both(out: Tensor) -> None:
        torch.autograd.grad(out, inputs, grad)

    name, shape = str(dtype).removeprefix("torch."), f"T{T} H{H} I{I} E{E} k{k}"
    yield Case(
        f"experts {name}, forward + backward",
        shape,
        "grouped_mm experts",
        lambda: both(ops.moe_experts(x, ids, weights, w_in, w_out)),
        lambda: both(experts_plain(x, ids, weights, w_in, w_out)),
    )


def cases(quick: bool) -> Iterator[Case]:
    """Routers, the plan, and the experts' block, forward and backward."""
    for T in (64,) if quick else (64, 1024, 4096):
        yield from _route_softmax(T, 64, 8)
        yield from _route_sigmoid(T, 64, 6)
        yield from _plan(T, 64, 8)
    for dtype in (torch.float32, torch.bfloat16):
        for T in (16,) if quick else (16, 128, 1024):
            yield from _experts(T, 512, 256, 32, 4, dtype)
