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


def _convolutions(quick: bool, *lengths: int) -> Iterator[_Conv]:
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            for L in lengths:
                yield _Conv(256 if quick else 1536, L, 4, dtype, channels_last)


def _conv_cases(conv: _Conv) -> Iterator[Case]:
    baseline = "faster of conv1d, shifts"
    for name, side in (("forward", conv.forward), ("forward + backward", conv.train)):
        plain = _faster(side(_conv_plain), side(_conv_shifts))
        yield Case(f"{conv.name}, {name}", conv.shape, baseline, side(_conv_ours), plain)


# ---- selective scan


def _scan_ours(*inputs: Tensor) -> Tensor:
    u, delta, A, B, C, D = inputs
    out: Tensor = ops.selective_scan(u, delta, A, B, C, D=D)[0]
    return out


def _scan_chunks(chunk: int) -> Callable[..., Tensor]:
    """Running sums in the decayed frame, a chunk at a time: for weak decays only, since
    e^(−Σ δA) must not overflow. A loop over positions takes longer forward, and 28 s backward.
    """

    def scan(*inputs: Tensor) -> Tensor:
        u, delta, A, B, C, D = inputs
        x, rows = u.new_zeros(u.shape[0], u.shape[1], 1, A.shape[1]), []
        pieces = (t.split(chunk, -1) for t in (u, delta, B, C))
        for own, step, b, c in zip(*pieces, strict=True):
            g = (step[..., None] * A[:, None]).cumsum(2)
            add = (step * own)[..., None] * b[:, None].transpose(-1, -2)
            states = g.exp() * (x + (add * (-g).exp()).cumsum(2))
            rows.append((states * c[:, None].transpose(-1, -2)).sum(-1) + own * D[:, None])
            x = states[:, :, -1:]
        return torch.cat(rows, -1)

    return scan


class _Scan:
    """One scan's inputs as Mamba's projections give them, forward and with its backward."""

    def __init__(self, D: int, N: int, L: int) -> None:
        u, delta = torch.randn(1, L, D).transpose(1, 2), torch.rand(1, L, D).transpose(1, 2) / 10
        A = -torch.arange(1.0, N + 1).repeat(D, 1)
        columns = torch.randn(2, 1, L, N).transpose(2, 3).unbind()
        self.inputs = [u, delta, A, *columns, torch.ones(D)]
        self.leaves = [t.clone().requires_grad_() for t in self.inputs]
        self.grad = torch.randn(1, D, L)
        self.shape = f"B1 D{D} N{N} L{L}"

    def forward(self, scan: Callable[..., Tensor]) -> Side:
        return lambda: scan(*self.inputs)

    def train(self, scan: Callable[..., Tensor]) -> Side:
        return lambda: torch.autograd.grad(scan(*self.leaves), self.leaves, self.grad)


def _scan_cases(scan: _Scan) -> Iterator[Case]:
    for name, side in (("forward", scan.forward), ("forward + backward", scan.train)):
        plain = _faster(side(_scan_chunks(8)), side(_scan_chunks(16)))
        yield Case(
            f"selective_scan, float32, {name}",
            scan.shape,
            "faster of chunks of 8, 16",
            side(_scan_ours),
            plain,
            least=5,
        )


def _scans(quick: bool) -> Iterator[_Scan]:
    yield from (_Scan(256, 16, 64),) if quick else (_Scan(1536, 16, 512), _Scan(1536, 16, 2048))


def cases(quick: bool) -> Iterator[Case]:
    """Convolutions of both layouts in float32 and bfloat16, then scans."""
    for conv in _convolutions(quick, *((512,) if quick else (512, 2048))):
        yield from _conv_cases(conv)
    for scan in _scans(quick):
        yield from _scan_cases(scan)


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """Forward and backward, beside the gradients, of long convolutions and a scan."""
    for conv in _convolutions(quick, 512 if quick else 8192):
        yield MemoryCase(
            f"{conv.name}, forward + backward",
            conv.shape,
            "shifts",
            conv.train(_conv_ours),
            conv.train(_conv_shifts),
            kept=conv.kept(),
        )
    for scan in _scans(quick):
        yield MemoryCase(
            "selective_scan, float32, forward + backward",
            scan.shape,
            "chunks of 16",
            scan.train(_scan_ours),
            scan.train(_scan_chunks(16)),
            kept=sum(t.nbytes for t in scan.inputs),
        )
