"""Convolutions, scans, features and linear attention against the best plain PyTorch ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as tF
from torch import Tensor

from fulgurite.bench import linear_attention
from fulgurite.bench.harness import Case, MemoryCase, Side
from fulgurite.bench.peak import best_seconds, name_of

ops = torch.ops.fulgurite


def _faster(*sides: Side) -> Side:
    return min(sides, key=lambda side: best_seconds(side, 4))


class _Work:
    """An operator's inputs, all of which want gradients: forward, and with its backward."""

    def __init__(self, name: str, shape: str, inputs: list[Tensor], grad: Tensor) -> None:
        self.name, self.shape, self.inputs, self.grad = name, shape, inputs, grad
        self.leaves = [t.clone().requires_grad_() for t in inputs]  # clone keeps strides

    def forward(self, call: Callable[..., Tensor]) -> Side:
        return lambda: call(*self.inputs)

    def train(self, call: Callable[..., Tensor]) -> Side:
        return lambda: torch.autograd.grad(call(*self.leaves), self.leaves, self.grad)

    def cases(
        self, baseline: str, ours: Callable[..., Tensor], *plain: Callable[..., Tensor], least: int
    ) -> Iterator[Case]:
        for name, side in (("forward", self.forward), ("forward + backward", self.train)):
            yield Case(
                f"{self.name}, {name}",
                self.shape,
                baseline,
                side(ours),
                _faster(*map(side, plain)),
                least=least,
            )

    def memory(
        self, baseline: str, ours: Callable[..., Tensor], plain: Callable[..., Tensor]
    ) -> MemoryCase:
        """Forward and backward, beside the gradients."""
        return MemoryCase(
            f"{self.name}, forward + backward",
            self.shape,
            baseline,
            self.train(ours),
            self.train(plain),
            kept=sum(t.nbytes for t in self.inputs),
        )


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


def _conv(C: int, L: int, W: int, dtype: torch.dtype, channels_last: bool) -> _Work:
    x = torch.randn(1, L, C).transpose(1, 2) if channels_last else torch.randn(1, C, L)
    layout = "channels last" if channels_last else "(B,C,L)"
    return _Work(
        f"causal_conv1d + silu, {name_of(dtype)}, {layout}",
        f"B1 C{C} L{L} W{W}",
        [x.to(dtype), torch.randn(C, W).to(dtype) / W**0.5, torch.randn(C).to(dtype)],
        torch.randn(1, C, L).to(dtype),
    )


def _convolutions(quick: bool, *lengths: int) -> Iterator[_Work]:
    if quick:
        yield _conv(256, 512, 4, torch.bfloat16, channels_last=True)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            for L in lengths:
                yield _conv(1536, L, 4, dtype, channels_last)


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


def _scan(D: int, N: int, L: int) -> _Work:
    """As Mamba's projections give them."""
    u, delta = torch.randn(1, L, D).transpose(1, 2), torch.rand(1, L, D).transpose(1, 2) / 10
    A = -torch.arange(1.0, N + 1).repeat(D, 1)
    columns = torch.randn(2, 1, L, N).transpose(2, 3).unbind()
    return _Work(
        "selective_scan, float32",
        f"B1 D{D} N{N} L{L}",
        [u, delta, A, *columns, torch.ones(D)],
        torch.randn(1, D, L),
    )


def _scans(quick: bool) -> Iterator[_Work]:
    yield from (_scan(256, 16, 64),) if quick else (_scan(1536, 16, 512), _scan(1536, 16, 2048))


# ---- random features


def _features_ours(is_query: bool) -> Callable[..., Tensor]:
    return lambda x, projection: ops.favor_features(x, projection, is_query=is_query)


def _features_plain(is_query: bool) -> Callable[..., Tensor]:
    """A product, then elementwise, in place where nothing is recorded."""

    def features(x: Tensor, projection: Tensor) -> Tensor:
        scaled: Tensor = x * x.shape[-1] ** -0.25
        p: Tensor = scaled @ projection.T
        most = p.detach().amax((-1,) if is_query else (-2, -1), keepdim=True)
        exponent = p - (scaled.square().sum(-1, keepdim=True) / 2 + most)
        share: float = projection.shape[0] ** -0.5
        if exponent.requires_grad:
            return (exponent.exp() + 1e-4) * share
        return exponent.exp_().add_(1e-4).mul_(share)

    return features


def _features(is_query: bool, N: int, D: int) -> _Work:
    return _Work(
        f"favor_features of {'queries' if is_query else 'keys'}, float32",
        f"B1 H8 N{N} D{D} M256",
        [torch.randn(1, 8, N, D), torch.randn(256, D)],
        torch.randn(1, 8, N, 256),
    )


def cases(quick: bool) -> Iterator[Case]:
    """Convolutions in both layouts, float32 and bfloat16, scans, features, linear attention."""
    for conv in _convolutions(quick, *((512,) if quick else (512, 2048))):
        yield from conv.cases(
            "faster of conv1d, shifts", _conv_ours, _conv_plain, _conv_shifts, least=7
        )
    for scan in _scans(quick):
        yield from scan.cases(
            "faster of chunks of 8, 16", _scan_ours, _scan_chunks(8), _scan_chunks(16), least=5
        )
    for is_query in (True, False):
        for N, D in ((64, 64),) if quick else ((512, 64), (2048, 64), (2048, 128), (8192, 64)):
            yield from _features(is_query, N, D).cases(
                "product, elementwise",
                _features_ours(is_query),
                _features_plain(is_query),
                least=7,
            )
    yield from linear_attention.cases(quick)


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """Long convolutions, scans, features of keys, and sequences."""
    for conv in _convolutions(quick, 512 if quick else 8192):
        yield conv.memory("shifts", _conv_ours, _conv_shifts)
    for scan in _scans(quick):
        yield scan.memory("chunks of 16", _scan_ours, _scan_chunks(16))
    if not quick:
        work = _features(False, 8192, 64)
        yield work.memory("product, elementwise", _features_ours(False), _features_plain(False))
    yield from linear_attention.memory_cases(quick)
