"""RMS norms against torch's own, torch's LayerNorm and the class of a released model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as tF
from torch import Tensor

from fulgurite.bench.harness import Case, MemoryCase, Side
from fulgurite.bench.peak import name_of

ops = torch.ops.fulgurite
Norm = Callable[[Tensor, Tensor], Tensor]


def _released(x: Tensor, weight: Tensor) -> Tensor:
    """As LlamaRMSNorm is written, and its copies in most other models."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def _torchs(x: Tensor, weight: Tensor) -> Tensor:
    return tF.rms_norm(x, weight.shape, weight, 1e-6)


def _layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Other numbers, by a fused kernel of torch's."""
    return tF.layer_norm(x, weight.shape, weight, None, 1e-6)


def _ours(x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = ops.rms_norm(x, weight)
    return out


class _Rows:
    """Rows of x, a weight of their dtype, and the gradient of the result."""

    def __init__(self, rows: int, H: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = f"{rows} rows of {H}", dtype
        self.inputs = [torch.randn(rows, H).to(dtype), torch.rand(H).to(dtype)]
        self.grad = torch.randn(rows, H).to(dtype)
        self.leaves = [t.clone().requires_grad_() for t in self.inputs]

    def forward(self, norm: Norm) -> Side:
        return lambda: norm(*self.inputs)

    def train(self, norm: Norm) -> Side:
        return lambda: torch.autograd.grad(norm(*self.leaves), self.leaves, self.grad)


def _all_rows(quick: bool) -> Iterator[_Rows]:
    """Those of a small model, of its heads, and of a large one."""
    sizes = [(1024, 512), (8192, 64), (1024, 4096)]
    for dtype in (torch.float32, torch.bfloat16):
        for rows, H in sizes[:1] if quick else sizes:
            yield _Rows(rows, H, dtype)


def cases(quick: bool) -> Iterator[Case]:
    """Forward, and with its backward."""
    plains = {"LlamaRMSNorm": _released, "rms_norm": _torchs, "layer_norm": _layer_norm}
    for rows in _all_rows(quick):
        for what in ("forward", "forward + backward"):
            for baseline, plain in plains.items():
                side = rows.forward if what == "forward" else rows.train
                work = f"rms_norm, {name_of(rows.dtype)}, {what}"
                yield Case(work, rows.shape, baseline, side(_ours), side(plain), least=15)


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """Forward and backward, beside the gradients."""
    for rows in _all_rows(quick):
        yield MemoryCase(
            f"rms_norm, {name_of(rows.dtype)}, forward + backward",
            rows.shape,
            "LlamaRMSNorm",
            rows.train(_ours),
            rows.train(_released),
            kept=sum(t.nbytes for t in rows.inputs),
        )
