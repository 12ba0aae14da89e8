"""Mixture of experts against the way transformers writes it in torch operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import softmax

from fulgurite.bench.experts import Block, Work, eager, grouped
from fulgurite.bench.harness import Case, MemoryCase

ops = torch.ops.fulgurite
Route = Callable[[Tensor], Tensor]


def _both(
    work: str, shape: str, baseline: str, logits: Tensor, grad: Tensor, ours: Route, plain: Route
) -> Iterator[Case]:
    """A router, forward alone and with its backward. Both sides count the load."""
    fixed, leaf = logits, logits.clone().requires_grad_()
    yield Case(f"{work}, forward", shape, baseline, lambda: ours(fixed), lambda: plain(fixed))
    yield Case(
        f"{work}, forward + backward",
        shape,
        baseline,
        lambda: torch.autograd.grad(ours(leaf), leaf, grad),
        lambda: torch.autograd.grad(plain(leaf), leaf, grad),
    )


def _route_softmax(T: int, E: int, k: int) -> Iterator[Case]:
    """Mixtral's, Qwen3-MoE's."""

    def ours(logits: Tensor) -> Tensor:
        weights: Tensor = ops.moe_route(logits, k)[0]
        return weights

    def plain(logits: Tensor) -> Tensor:
        top, ids = softmax(logits, -1, dtype=torch.float32).topk(k, -1)
        torch.bincount(ids.flatten(), minlength=E)
        return top / top.sum(-1, keepdim=True)

    shape, baseline = f"T{T} E{E} k{k}", "softmax, topk, bincount"
    yield from _both(
        "router softmax", shape, baseline, torch.randn(T, E), torch.randn(T, k), ours, plain
    )


def _route_sigmoid(T: int, E: int, k: int) -> Iterator[Case]:
    """Moonlight's, Kimi-K2's."""
    bias = torch.randn(E) * 0.01

    def ours(logits: Tensor) -> Tensor:
        weights: Tensor = ops.moe_route(logits, k, score="sigmoid", bias=bias, scale=2.5)[0]
        return weights

    def plain(logits: Tensor) -> Tensor:
        scores = logits.sigmoid()
        ids = torch.topk(scores.detach() + bias, k, -1, sorted=False)[1]
        torch.bincount(ids.flatten(), minlength=E)
        top = scores.gather(1, ids)
        return top / (top.sum(-1, keepdim=True) + 1e-20) * 2.5

    shape, baseline = f"T{T} E{E} k{k}", "sigmoid, topk, gather, bincount"
    yield from _both(
        "router sigmoid", shape, baseline, torch.randn(T, E), torch.randn(T, k), ours, plain
    )


def _route_grouped(T: int, E: int, k: int, groups: int, kept: int) -> Iterator[Case]:
    """DeepSeek-V3's."""
    bias = torch.randn(E) * 0.01

    def ours(logits: Tensor) -> Tensor:
        weights: Tensor = ops.moe_route(
            logits, k, score="sigmoid", bias=bias, scale=2.5, n_group=groups, topk_group=kept
        )[0]
        return weights

    def plain(logits: Tensor) -> Tensor:
        scores = logits.sigmoid()
        choice = scores.detach() + bias
        group_scores = choice.view(T, groups, E // groups).topk(2, dim=-1)[0].sum(dim=-1)
        best = torch.topk(group_scores, k=kept, dim=-1, sorted=False)[1]
        mask = torch.zeros_like(group_scores).scatter_(1, best, 1)
        mask = mask.unsqueeze(-1).expand(T, groups, E // groups).reshape(T, E)
        choice = choice.masked_fill(~mask.bool(), float("-inf"))
        ids = torch.topk(choice, k=k, dim=-1, sorted=False)[1]
        torch.bincount(ids.flatten(), minlength=E)
        top = scores.gather(1, ids)
        return top / (top.sum(-1, keepdim=True) + 1e-20) * 2.5

    shape = f"T{T} E{E} k{k} groups {kept}/{groups}"
    baseline = "sigmoid, topk of groups, mask, topk, gather, bincount"
    yield from _both(
        "router grouped", shape, baseline, torch.randn(T, E), torch.randn(T, k), ours, plain
    )


def _plan(T: int, E: int, k: int) -> Iterator[Case]:
    ids = torch.rand(T, E).topk(k)[1]
    ours_ids = ids.int()  # what moe_route gives

    def plain() -> None:
        experts, order = torch.sort(ids.flatten())
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        torch.histc(experts.float(), bins=E, min=0, max=E - 1).cumsum(0, dtype=torch.int32)

    yield Case(
        "plan", f"T{T} E{E} k{k}", "sort, scatter, histc", lambda: ops.moe_plan(ours_ids, E), plain
    )


def _experts(block: Block) -> Iterator[Case]:
    """The block forward alone and with its backward."""
    work = Work(block)
    yield Case(
        f"{block.name}, forward",
        str(block),
        "grouped_mm experts",
        lambda: work.forward(ops.moe_experts),
        lambda: work.forward(grouped),
        operations=block.operations,
        products_of=block.dtype,
        bytes_read=work.touched_bytes() if block.T <= 16 else 0.0,
    )
    yield Case(
        f"{block.name}, forward + backward",
        str(block),
        "grouped_mm experts",
        lambda: work.train(ops.moe_experts),
        lambda: work.train(grouped),
        operations=3 * block.operations,
        products_of=block.dtype,
    )


def _eager(block: Block) -> Case:
    """The same against the loop over experts, whose backward takes seconds."""
    work = Work(block)
    return Case(
        f"{block.name}, forward + backward, eager",
        str(block),
        "eager experts",
        lambda: work.train(ops.moe_experts),
        lambda: work.train(eager),
        least=3,
        apart=True,
    )


def _memory(block: Block) -> MemoryCase:
    """Forward and backward, beside the gradients."""
    work = Work(block)
    return MemoryCase(
        f"{block.name}, forward + backward",
        str(block),
        "grouped_mm experts",
        lambda: work.train(ops.moe_experts),
        lambda: work.train(grouped),
        kept=work.gradient_bytes(),
    )


def _blocks(quick: bool) -> Iterator[Block]:
    for dtype in (torch.float32, torch.bfloat16):
        for H, I, E, k in [(512, 256, 32, 4)] if quick else [(512, 256, 32, 4), (1024, 512, 64, 8)]:
            for T in (16,) if quick else (16, 128, 1024):
                yield Block(T, H, I, E, k, dtype)


def cases(quick: bool) -> Iterator[Case]:
    """Routers, the plan, and the experts' block, forward and backward."""
    for T in (64,) if quick else (64, 1024, 4096):
        yield from _route_softmax(T, 64, 8)
        yield from _route_sigmoid(T, 64, 6)
        yield from _route_grouped(T, 256, 8, 8, 4)
        yield from _plan(T, 64, 8)
    for block in _blocks(quick):
        yield from _experts(block)
    yield from map(_eager, _blocks(quick))


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """The larger block."""
    if quick:
        yield _memory(Block(16, 512, 256, 32, 4, torch.bfloat16))
        return
    yield from (_memory(block) for block in _blocks(quick) if block.E == 64)
