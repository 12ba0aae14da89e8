"""Attention against torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fulgurite.bench.harness import Case, MemoryCase
from fulgurite.bench.peak import name_of

SIZES = [(512, 64), (1024, 64), (1024, 128), (2048, 64), (2048, 128), (4096, 64)]
QUICK = [(512, 64)]
Attend = Callable[[], Tensor]


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
    name = name_of(dtype)
    product = 2 * q.size(1) * S * S * D / (2 if causal else 1)
    products_of = torch.float32 if dtype == torch.float16 else dtype
    yield Case(
        f"{name} forward, {mask}",
        shape,
        "SDPA",
        lambda: forward(ours),
        lambda: forward(plain),
        operations=2 * product,
        products_of=products_of,
    )
    yield Case(
        f"{name} backward, {mask}",
        shape,
        "SDPA",
        lambda: torch.autograd.grad(out_ours, (q, k, v), grad, retain_graph=True),
        lambda: torch.autograd.grad(out_plain, (q, k, v), grad, retain_graph=True),
        operations=5 * product,
        products_of=products_of,
    )


def _window(S: int, D: int, dtype: torch.dtype, window: int) -> Iterator[Case]:
    q, k, v = (x.detach() for x in _inputs(S, D, dtype))
    i = torch.arange(S)
    mask = (i[:, None] >= i) & (i[:, None] - window < i)
    name, shape = name_of(dtype), f"B1 H8 S{S} D{D} window {window}"

    def ours() -> None:
        torch.ops.fulgurite.attention(q, k, v, causal=True, window_left=window - 1)

    def causal() -> None:
        scaled_dot_product_attention(q, k, v, is_causal=True)

    def masked() -> None:
        scaled_dot_product_attention(q, k, v, attn_mask=mask)

    yield Case(f"{name} forward, window", shape, "SDPA causal", ours, causal)
    yield Case(f"{name} forward, window against mask", shape, "SDPA with the mask", ours, masked)


def _documents(T: int, count: int, dtype: torch.dtype) -> Iterator[Case]:
    """Packed documents of uneven length against a dense block mask."""
    q, k, v = (x.detach() for x in _inputs(T, 64, dtype))
    shares = torch.arange(1, count + 1, dtype=torch.float64)
    starts = torch.cat([torch.zeros(1), (shares / shares.sum() * T).cumsum(0)]).round().long()
    document = torch.bucketize(torch.arange(T), starts[1:-1], right=True)
    i = torch.arange(T)
    mask = (document[:, None] == document) & (i[:, None] >= i)
    packed = [x[0].transpose(0, 1).contiguous() for x in (q, k, v)]
    yield Case(
        f"{name_of(dtype)} forward, {count} documents, causal",
        f"T{T} H8 D64",
        "SDPA with a dense mask",
        lambda: torch.ops.fulgurite.attention_varlen(*packed, starts, starts, causal=True),
        lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask),
    )


def _decode(B: int, M: int, dtype: torch.dtype) -> Iterator[Case]:
    """One new token for 32 query heads on 8 key/value heads."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(B, 32, 1, 128, generator=generator).to(dtype)
    key, value = torch.randn(2, B, 8, M, 128, generator=generator).to(dtype)
    lens = torch.full((B,), M)
    yield Case(
        f"{name_of(dtype)} decode, GQA 4",
        f"B{B} H32/8 M{M} D128",
        "SDPA, enable_gqa",
        lambda: torch.ops.fulgurite.attention_decode(query, key, value, lens),
        lambda: scaled_dot_product_attention(query, key, value, enable_gqa=True),
        bytes_read=2 * key.numel() * key.element_size(),
    )


def _training(
    work: str, shape: str, leaves: list[Tensor], grad: Tensor, ours: Attend, plain: Attend
) -> Case:
    """Forward and backward, where SDPA takes its math route."""

    def step(side: Attend) -> None:
        torch.autograd.grad(side(), leaves, grad)

    name = f"{name_of(grad.dtype)} forward and backward, {work}"
    return Case(name, shape, "SDPA (math)", lambda: step(ours), lambda: step(plain))


def _bias(B: int, H: int, N: int, D: int, dtype: torch.dtype, work: str) -> Iterator[Case]:
    """A bias (1,H,N,N) that has a gradient."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, B, H, N, D, generator=generator).to(dtype)
    bias = torch.randn(1, H, N, N, generator=generator).to(dtype)
    yield _training(
        "bias with gradient",
        f"{work}: B{B} H{H} N{N} D{D}",
        [x.requires_grad_() for x in (q, k, v, bias)],
        grad,
        lambda: torch.ops.fulgurite.attention(q, k, v, bias=bias)[0],
        lambda: scaled_dot_product_attention(q, k, v, attn_mask=bias),
    )


def _dropout(S: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    """A tenth of the probabilities dropped."""
    leaves = q, k, v = _inputs(S, D, dtype)
    philox = torch.tensor([0, 0])
    yield _training(
        "dropout",
        f"B1 H8 S{S} D{D} p 0.1",
        leaves,
        torch.randn(q.shape).to(dtype),
        lambda: torch.ops.fulgurite.attention(q, k, v, dropout_p=0.1, philox=philox)[0],
        lambda: scaled_dot_product_attention(q, k, v, dropout_p=0.1),
    )


def cases(quick: bool) -> Iterator[Case]:
    """Forward and backward alone, with and without the causal mask; windows, documents, decoding,
    a bias that is learned, dropout."""
    for dtype in (torch.float32, torch.bfloat16):
        for S, D in QUICK if quick else SIZES:
            for causal in (False, True):
                yield from _pair(S, D, dtype, causal)
        yield from _window(1024 if quick else 4096, 64, dtype, 256)
        yield from _documents(1024 if quick else 4096, 16, dtype)
        yield from _decode(1, 1024 if quick else 4096, dtype)
        yield from _bias(64, 4, 49, 32, dtype, "Swin")
        yield from _bias(1, 8, 256 if quick else 512, 64, dtype, "T5")
        yield from _dropout(512 if quick else 1024, 64, dtype)
    yield from _pair(512, 64, torch.float16, True)


def _memory(S: int, dtype: torch.dtype, causal: bool) -> MemoryCase:
    """Forward and backward, beside the result and three gradients."""
    q, k, v = leaves = _inputs(S, 64, dtype)
    grad = torch.ones_like(q)

    def both(out: Tensor) -> None:
        torch.autograd.grad(out, leaves, grad)

    return MemoryCase(
        f"{name_of(dtype)} forward + backward, {'causal' if causal else 'no mask'}",
        f"B1 H8 S{S} D64",
        "SDPA",
        lambda: both(torch.ops.fulgurite.attention(q, k, v, causal=causal)[0]),
        lambda: both(scaled_dot_product_attention(q, k, v, is_causal=causal)),
        kept=4 * q.numel() * q.element_size(),
    )


def memory_cases(quick: bool) -> Iterator[MemoryCase]:
    """What is allocated beside results where an N×N matrix would be large."""
    if quick:
        yield _memory(1024, torch.bfloat16, True)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for causal in (False, True):
            yield _memory(8192, dtype, causal)
