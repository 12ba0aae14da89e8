"""Convolutions and scans against the best plain PyTorch ways to the same results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as tF
from torch import Tensor

from fulgurite.bench.harness import Case, MemoryCase, Side

ops = torch.ops.fulgurite
Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def _seconds(side: Side) -> float:
    """The fastest of three calls after a first one."""
    side()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        side()
        times.append(time.perf_counter() - start)
    return min(times)


def _faster(*sides: Side) -> Side:
    return min(sides, key=_seconds)


def _conv_ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out: Tensor = ops.causal_conv1d(x, weight, bias=bias, activation="silu")[0]
    return out


def _conv_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As Mamba and its successors are written."""
    C, W = weight.shape
    out = tF.conv1d(x, weight[:, None], bias, padding=W - 1, groups=C)
    return tF.silu(out[..., : x.shape[-1]])


def _conv_shifts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W shifted products: often faster than torch's depthwise convolution on a CPU."""
    W, n = weight.shape[1], x.shape[-1]
    line = tF.pad(x, (W - 1, 0))
    out = line[..., :n] * weight[:, 0, None]
    for w in range(1, W):
        out = torch.addcmul(out, line[..., w : w + n], weight[:, w, None].expand(-1, n))
    return tF.silu(out + bias[:, None])


class _Conv:
    """One convolution's inputs, forward and with its backward."""

    def __init__(self, C: int, L: int, W: int, dtype: torch.dtype, channels_last: bool) -> None:
        x = torch.randn(1, L, C).transpose(1, 2) if channels_last else torch.randn(1, C, L)
        self.inputs = [x.to(dtype), torch.randn(C, W).to(dtype) / W**0.5, torch.randn(C).to(dtype)]
        self.leaves = [t.clone().requires_grad_() for t in self.inputs]  # clone keeps strides
        self.grad = torch.randn(1, C, L).to(dtype)
        layout = "channels last" if channels_last else "(B,C,L)"
        self.name = f"causal_conv1d + silu, {str(dtype)[6:]}, {layout}"
        self.shape = f"B1 C{C} L{L} W{W}"

    def forward(self, convolve: Convolution) -> Side:
        return lambda: convolve(*self.inputs)

    def train(self, convolve: Convolution) -> Side:
        return lambda: torch.autograd.grad(convolve(*self.leaves), self.leaves, self.grad)

    def kept(self) -> int:
        """Bytes of the gradients."""
        return sum(t.nbytes for t in self.inputs)


def _convolutions(quick: bool) -> Iterator[_Conv]:
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            for L in (512,) if quick else (512, 2048, 8192):
                yield _Conv(256 if quick else 1536, L, 4, dtype, channels_last)


def _conv_cases(conv: _Conv) -> Iterator[Case]:
    baseline = "faster of conv1d, shifts"
    for name, side in (("forward", conv.forward), ("forward + backward", conv.train)):
        plain = _faster(side(_conv_plain), side(_conv_shifts))
        yield Case(f"{conv.name}, {name}", conv.shape, baseline, side(_conv_ours), plain)


def cases(quick: bool) -> Iterator[Case]:
    """Both layouts in float32 and bfloat16."""
    for conv in _convolutions(quick):
        yield from _conv_cases(conv)


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """The longest of each, forward and backward, beside the gradients."""
    longest = 512 if quick else 8192
    for conv in _convolutions(quick):
        if f"L{longest} " in conv.shape:
            yield MemoryCase(
                f"{conv.name}, forward + backward",
                conv.shape,
                "shifts",
                conv.train(_conv_ours),
                conv.train(_conv_shifts),
                kept=conv.kept(),
            )
