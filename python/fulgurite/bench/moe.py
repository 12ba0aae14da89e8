"""Mixture of experts against the way transformers writes it in torch operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear, one_hot, silu, softmax

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
        lambda: ours(leaf).backward(grad),
        lambda: plain(leaf).backward(grad),
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


def experts_eager(x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The eager experts of transformers 5: a loop over the experts that were chosen."""
    y = torch.zeros_like(x)
    with torch.no_grad():
        chosen = one_hot(ids.long(), w_in.size(0)).permute(2, 1, 0)
        hit = chosen.sum(dim=(-1, -2)).nonzero()
    for (expert,) in hit:
        position, token = torch.where(chosen[expert])
        gate, up = linear(x[token], w_in[expert]).chunk(2, -1)
        hidden = linear(silu(gate) * up, w_out[expert]) * weights[token, position, None]
        y.index_add_(0, token, hidden.to(y.dtype))
    return y


@dataclass(frozen=True)
class Block:
    """Experts of width I on T tokens of width H, k of E for each token; random weights."""

    T: int
    H: int
    I: int
    E: int
    k: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"T{self.T} H{self.H} I{self.I} E{self.E} k{self.k}"

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def inputs(self) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """ids, grad, and x, weights, w_in, w_out with gradients; the experts that were chosen."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = torch.randn(*shape, generator=generator) * scale
            return drawn.to(self.dtype).requires_grad_()

        x = random(self.T, self.H)
        w_in = random(self.E, 2 * self.I, self.H, scale=self.H**-0.5)
        w_out = random(self.E, self.H, self.I, scale=self.I**-0.5)
        ids = torch.rand(self.T, self.E, generator=generator).topk(self.k)[1].int()
        weights = torch.rand(self.T, self.k, generator=generator).requires_grad_()
        grad = torch.randn(self.T, self.H, generator=generator).to(self.dtype)
        return ids, grad, [x, weights, w_in, w_out], ids.unique()


Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _backward(out: Tensor, grad: Tensor, leaves: list[Tensor]) -> None:
    """As a training step calls it: fresh gradients in the layout of their parameters."""
    out.backward(grad)
    for leaf in leaves:
        leaf.grad = None


def _experts(block: Block) -> Iterator[Case]:
    """The block forward alone and with its backward."""
    ids, grad, leaves, chosen = block.inputs()
    x, weights, w_in, w_out = leaves
    operations = 6.0 * block.T * block.k * block.H * block.I
    touched = (w_in[0].numel() + w_out[0].numel()) * chosen.numel() * w_in.element_size()

    def run(experts: Experts) -> None:
        with torch.no_grad():
            experts(x, ids, weights, w_in, w_out)

    def both(experts: Experts) -> None:
        _backward(experts(x, ids, weights, w_in, w_out), grad, leaves)

    yield Case(
        f"experts {block.name}, forward",
        str(block),
        "grouped_mm experts",
        lambda: run(ops.moe_experts),
        lambda: run(experts_plain),
        operations=operations,
        products_of=block.dtype,
        bytes_read=touched if block.T <= 16 else 0.0,
    )
    yield Case(
        f"experts {block.name}, forward + backward",
        str(block),
        "grouped_mm experts",
        lambda: both(ops.moe_experts),
        lambda: both(experts_plain),
        operations=3 * operations,
        products_of=block.dtype,
    )


def _eager(block: Block) -> Case:
    """The same against the loop over experts, whose backward takes seconds."""
    ids, grad, leaves, _ = block.inputs()
    x, weights, w_in, w_out = leaves

    def both(experts: Experts) -> None:
        _backward(experts(x, ids, weights, w_in, w_out), grad, leaves)

    return Case(
        f"experts {block.name}, forward + backward, eager",
        str(block),
        "eager experts",
        lambda: both(ops.moe_experts),
        lambda: both(experts_eager),
        least=3,
        apart=True,
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


def _memory(block: Block) -> MemoryCase:
    """Forward and backward, beside the gradients."""
    ids, grad, leaves, _ = block.inputs()
    x, weights, w_in, w_out = leaves

    def both(experts: Experts) -> None:
        _backward(experts(x, ids, weights, w_in, w_out), grad, leaves)

    return MemoryCase(
        f"experts {block.name}, forward + backward",
        str(block),
        "grouped_mm experts",
        lambda: both(ops.moe_experts),
        lambda: both(experts_plain),
        kept=sum(leaf.numel() * leaf.element_size() for leaf in leaves),
    )


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """The larger block."""
    if quick:
        yield _memory(Block(16, 512, 256, 32, 4, torch.bfloat16))
        return
    yield from (_memory(block) for block in _blocks(quick) if block.E == 64)
