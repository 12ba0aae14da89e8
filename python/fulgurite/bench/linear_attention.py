"""Linear attention against chunked products in plain PyTorch, and decoding against a plain step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as tF
from torch import Tensor

from fulgurite.bench.harness import Case, MemoryCase, Side
from fulgurite.bench.peak import best_seconds, name_of

ops = torch.ops.fulgurite
DECAYS = {0: "no decay", 3: "decay per position", 4: "decay per feature"}


def _ours(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None) -> Tensor:
    out: Tensor = ops.linear_attention(q, k, v, log_decay=log_decay)[0]
    return out


def _cut(t: Tensor, chunk: int) -> Tensor:
    """(B,H,N,D) as (B,H,chunks,chunk,D), zeros after the last position."""
    pad = -t.shape[2] % chunk
    t = tF.pad(t, (0, 0) * (t.dim() - 3) + (0, pad)) if pad else t
    return t.reshape(*t.shape[:2], -1, chunk, *t.shape[3:])


def _carried(own: Tensor, last: Tensor | None) -> Tensor:
    """The state before each chunk, of what each adds and of how much of it is left after one."""
    if last is None:
        total = own.cumsum(2)
        return torch.cat([torch.zeros_like(total[:, :, :1]), total[:, :, :-1]], 2)
    states, state = [], torch.zeros_like(own[:, :, 0])
    # unbind: the backward of own[:, :, c] would fill a whole tensor of zeros for each chunk.
    for added, left in zip(own.unbind(2), last.unbind(2), strict=True):
        states.append(state)
        state = torch.addcmul(added, state, left.expand_as(state))
    return torch.stack(states, 2)


def _plain(chunk: int) -> Callable[..., Tensor]:
    """Chunked products. A decay per position as the exponential of differences of running sums; one
    per feature as q·e^G and k·e^−G, for weak decays only. 16-bit inputs are widened: products in 16
    bits take longer."""

    def attend(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None) -> Tensor:
        B, H, N, dtype, repeats = *v.shape[:3], q.dtype, v.shape[1] // q.shape[1]
        if repeats > 1:
            q, k = q.repeat_interleave(repeats, 1), k.repeat_interleave(repeats, 1)
        q, k, v = (_cut(t.float(), chunk) for t in (q, k, v))
        hidden = ~torch.ones(chunk, chunk, dtype=torch.bool).tril()
        last = None
        if log_decay is None:
            inner, own = (q @ k.mT).masked_fill(hidden, 0), k.mT @ v
        elif log_decay.dim() == 3:
            g = _cut(log_decay.float(), chunk).cumsum(3)[..., None]
            inner = (q @ k.mT) * torch.exp((g - g.mT).masked_fill(hidden, -torch.inf))
            own, last = (k * (g[:, :, :, -1:] - g).exp()).mT @ v, g[:, :, :, -1].exp()[..., None]
            q = q * g.exp()
        else:
            g = _cut(log_decay.float(), chunk).cumsum(3)
            q = q * g.exp()
            inner = (q @ (k * (-g).exp()).mT).masked_fill(hidden, 0)
            own, last = (k * (g[:, :, :, -1:] - g).exp()).mT @ v, g[:, :, :, -1].exp()[..., None]
        out = inner @ v + q @ _carried(own, last)
        return out.reshape(B, H, -1, v.shape[-1])[:, :, :N].to(dtype)

    return attend


class _Attention:
    """One call's inputs, all of which want gradients."""

    def __init__(
        self, N: int, D: int, Dv: int, dtype: torch.dtype, decay: int, H: int = 8, Hk: int = 8
    ) -> None:
        q, k = torch.randn(2, 1, Hk, N, D).to(dtype)
        self.inputs = [q, (k * D**-0.5).to(dtype), torch.randn(1, H, N, Dv).to(dtype)]
        if decay:
            self.inputs.append(-torch.rand((1, H, N) if decay == 3 else (1, H, N, D)) / 10)
        self.leaves = [t.clone().requires_grad_() for t in self.inputs]
        self.grad = torch.randn(1, H, N, Dv).to(dtype)
        self.name = f"linear_attention, {name_of(dtype)}, {DECAYS[decay]}"
        self.shape = f"B1 H{H} N{N} D{D}" + (f" Dv{Dv}" if Dv != D else "")
        if Hk != H:
            self.name, self.shape = f"{self.name}, few key heads", f"{self.shape} Hk{Hk}"
        # The state written and read, and of the pairs of a chunk of 32 the lower half.
        self.operations = H * N * (4.0 * D * Dv + 32 * (D + Dv))

    def forward(self, call: Callable[..., Tensor]) -> Side:
        return lambda: call(*self.inputs)

    def train(self, call: Callable[..., Tensor]) -> Side:
        return lambda: torch.autograd.grad(call(*self.leaves), self.leaves, self.grad)

    def cases(self, *chunks: int) -> Iterator[Case]:
        baseline = "faster of chunks of " + ", ".join(map(str, chunks))
        for name, side in (("forward", self.forward), ("forward + backward", self.train)):
            plain = min(
                (side(_plain(chunk)) for chunk in chunks), key=lambda one: best_seconds(one, 3)
            )
            # The backward reads and writes states twice and a half as often as the forward.
            operations = self.operations * (1 if name == "forward" else 3.5)
            yield Case(
                f"{self.name}, {name}",
                self.shape,
                baseline,
                side(_ours),
                plain,
                operations=operations,
                least=7,
            )

    def memory(self) -> MemoryCase:
        """Forward and backward, beside the gradients."""
        return MemoryCase(
            f"{self.name}, forward + backward",
            self.shape,
            "chunks of 64",
            self.train(_ours),
            self.train(_plain(64)),
            kept=sum(t.nbytes for t in self.inputs),
        )


def _packed(documents: int, length: int, D: int) -> Case:
    """Documents of one pack, and of a loop over them."""
    work = _Attention(documents * length, D, D, torch.float32, 3)
    lengths = [length // 2 + (i * length) // documents for i in range(documents)]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    bounds[-1] = documents * length
    offsets, plain = torch.tensor(bounds), _plain(64)

    def ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        out: Tensor = ops.linear_attention(q, k, v, log_decay=g, cu_seqlens=offsets)[0]
        return out

    def loop(*inputs: Tensor) -> Tensor:
        return torch.cat([plain(*(t[:, :, a:b] for t in inputs)) for a, b in pairwise(bounds)], 2)

    return Case(
        f"linear_attention, {documents} packed documents, forward + backward",
        work.shape,
        "a loop of chunks of 64",
        work.train(ours),
        work.train(loop),
        least=5,
    )


def _decoding(H: int, D: int) -> Case:
    """One position, the state as it is kept between steps."""
    q, k, v = torch.randn(3, 1, H, 1, D)
    g, state = -torch.rand(1, H, 1), torch.randn(1, H, D, D)

    def step() -> tuple[Tensor, Tensor]:
        after = torch.addcmul(k.mT * v, state, g.exp()[..., None])
        return q @ after, after

    return Case(
        "linear_attention, one position",
        f"B1 H{H} D{D}",
        "a plain step",
        lambda: ops.linear_attention(q, k, v, log_decay=g, initial_state=state),
        step,
        least=31,
    )


def _attentions(quick: bool) -> Iterator[tuple[_Attention, tuple[int, ...]]]:
    for dtype in (torch.float32,) if quick else (torch.float32, torch.bfloat16, torch.float16):
        for decay in DECAYS:
            for N in (128,) if quick else (512, 2048, 8192):
                for D in (16,) if quick else (64, 128):
                    chunks = (16, 32, 64) if decay == 4 else (64, 128)
                    yield _Attention(N, D, D, dtype, decay), chunks
    # Mamba-2's shape: one group of all heads.
    sizes = (64, 16, 8) if quick else (1024, 128, 64)
    yield _Attention(*sizes, torch.float32, 3, 24, 1), (64, 128)


def cases(quick: bool) -> Iterator[Case]:
    """Every decay and dtype, a group of heads, a pack, and decoding."""
    for work, chunks in _attentions(quick):
        yield from work.cases(*chunks)
    yield _packed(4 if quick else 16, 32 if quick else 256, 16 if quick else 64)
    yield _decoding(4 if quick else 32, 16 if quick else 128)


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """Long sequences."""
    if quick:
        yield _Attention(256, 16, 16, torch.float32, 3).memory()
        return
    for dtype in (torch.float32, torch.bfloat16):
        for decay in DECAYS:
            yield _Attention(8192, 64, 64, dtype, decay).memory()
