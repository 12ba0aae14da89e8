"""A block of experts, and the two ways in which transformers computes it in torch operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear, one_hot, silu

from fulgurite.bench.peak import name_of

Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def grouped(x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
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


def eager(x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
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
    """Experts of width I on T tokens of width H, k of E for each token."""

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
        return f"experts {name_of(self.dtype)}"

    @property
    def operations(self) -> float:
        """Multiplications and additions of a forward; the backward has twice as many."""
        return 6.0 * self.T * self.k * self.H * self.I


class Work:
    """A block with random weights and tokens, to be computed in one way or another."""

    def __init__(self, block: Block) -> None:
        T, H, I, E = block.T, block.H, block.I, block.E
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            drawn = torch.randn(*shape, generator=generator) * scale
            return drawn.to(block.dtype).requires_grad_()

        x = random(T, H)
        w_in, w_out = random(E, 2 * I, H, scale=H**-0.5), random(E, H, I, scale=I**-0.5)
        self.ids = torch.rand(T, E, generator=generator).topk(block.k)[1].int()
        weights = torch.rand(T, block.k, generator=generator).requires_grad_()
        self.grad = torch.randn(T, H, generator=generator).to(block.dtype)
        self.leaves = [x, weights, w_in, w_out]

    def result(self, experts: Experts) -> Tensor:
        x, weights, w_in, w_out = self.leaves
        return experts(x, self.ids, weights, w_in, w_out)

    def forward(self, experts: Experts) -> None:
        with torch.no_grad():
            self.result(experts)

    def train(self, experts: Experts) -> None:
        """As a training step calls it: fresh gradients in the layout of their parameters."""
        self.result(experts).backward(self.grad)
        for leaf in self.leaves:
            leaf.grad = None

    def gradient_bytes(self) -> int:
        return sum(leaf.numel() * leaf.element_size() for leaf in self.leaves)

    def touched_bytes(self) -> int:
        """Of the weights whose experts were chosen."""
        _, _, w_in, w_out = self.leaves
        one = (w_in[0].numel() + w_out[0].numel()) * w_in.element_size()
        return int(self.ids.unique().numel()) * one
