"""Sample calls over packed sequences and caches, and of merging partial results.

T rows of all sequences, Hq query heads, Hkv key/value heads, N queries, D query/key width, Dv value
width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import attention_cache as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample
from fulgurite.testing.samples.attention import qkv


def offsets(device: torch.device, dtype: torch.dtype, *lengths: int) -> Tensor:
    """[0, l0, l0 + l1, …]"""
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(dtype)


def varlen_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def rows(Tq: int, Tk: int, *, Hq: int, Hkv: int, D: int, Dv: int) -> tuple[Tensor, ...]:
        shapes = ((Tq, Hq, D), (Tk, Hkv, D), (Tk, Hkv, Dv))
        return tuple(torch.randn(s, generator=generator).to(device, dtype) for s in shapes)

    def starts(*lengths: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return offsets(device, dtype, *lengths)

    same = starts(5, 0, 9, 3)
    yield Sample(
        "causal_grouped", (*rows(17, 17, Hq=4, Hkv=2, D=8, Dv=8), same, same), {"causal": True}
    )
    yield Sample(
        "cross_with_rows_of_nobody",
        (
            *rows(20, 22, Hq=2, Hkv=2, D=5, Dv=7),
            starts(4, 6, 0, 7, dtype=torch.int64),
            starts(3, 0, 5, 11),
        ),
        {"window_left": 3, "window_right": 1, "align": "top_left", "scale": 0.4},
    )
    yield Sample(
        "across_tiles_sink_alibi",
        (*rows(150, 190, Hq=2, Hkv=1, D=8, Dv=8), starts(20, 130), starts(40, 150)),
        {
            "causal": True,
            "sink": torch.randn(2, generator=generator).to(device, dtype),
            "alibi_slopes": torch.rand(2, 2, generator=generator).to(device, wide),
            "window_left": 100,
            "sink_tokens": 2,
            "softcap": 3.0,
        },
    )
    yield Sample(
        "dropout",
        (*rows(12, 12, Hq=2, Hkv=2, D=8, Dv=8), starts(7, 5), starts(7, 5)),
        {"dropout_p": 0.3, "philox": torch.tensor([99, 3], device=device)},
    )
    yield Sample(
        "dropout_of_a_part",
        (*rows(12, 12, Hq=2, Hkv=2, D=8, Dv=8), starts(7, 5), starts(7, 5)),
        {"dropout_p": 0.3, "philox": torch.tensor([99, 3, 4, 8], device=device)},
    )
    yield Sample("no_sequences", (*rows(3, 2, Hq=2, Hkv=2, D=4, Dv=4), starts(), starts()), {})
    yield Sample("no_rows", (*rows(0, 0, Hq=2, Hkv=2, D=4, Dv=4), starts(0), starts(0)), {})


def varlen_errors(device: torch.device) -> Iterator[ErrorSample]:
    query = torch.ones(6, 4, 8, device=device)
    key = torch.ones(6, 2, 8, device=device)
    starts = offsets(device, torch.int32, 2, 4)
    right = (query, key, key, starts, starts)

    def offsets_of(*values: int) -> Tensor:
        return torch.tensor(values, device=device)

    cases: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "key_dtype": ((query, key.double(), key, starts, starts), TypeError, "key"),
        "offsets_dtype": ((*right[:3], starts.float(), starts), TypeError, "cu_seqlens_q"),
        "query_4d": ((query[None], *right[1:]), RuntimeError, r"query of shape \[Tq, Hq, D\]"),
        "key_width": ((query, key[..., :7], key, starts, starts), RuntimeError, "key"),
        "value_rows": ((query, key, key[:5], starts, starts), RuntimeError, "value"),
        "heads": ((query[:, :3], *right[1:]), RuntimeError, "Hq"),
        "no_offsets": ((*right[:3], starts[:0], starts[:0]), RuntimeError, "cu_seqlens_q"),
        "more_offsets": ((*right[:4], starts[:2]), RuntimeError, "cu_seqlens_k"),
        "not_from_zero": ((*right[:3], offsets_of(1, 3, 6), starts), RuntimeError, "start at 0"),
        "falling": ((*right[:3], offsets_of(0, 4, 3), starts), RuntimeError, "cu_seqlens_q"),
        "beyond": ((*right[:4], offsets_of(0, 4, 7)), RuntimeError, "at most 6, got 7"),
    }
    for name, (args, error, match) in cases.items():
        yield ErrorSample(name, args, {}, error, match)
    yield ErrorSample("align", right, {"align": "center"}, ValueError, "align")
    yield ErrorSample("dropout_without_philox", right, {"dropout_p": 0.1}, ValueError, "philox")
    slopes = torch.ones(4, device=device, requires_grad=True)
    yield ErrorSample(
        "grad_of_alibi_slopes", right, {"alibi_slopes": slopes}, NotImplementedError, "alibi_slopes"
    )


def paged(cache: Tensor, page: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A cache (B, Hkv, Mmax, ·) as shuffled pages (P, Hkv, page, ·) and its table (B, pages)."""
    B, Hkv, M, D = cache.shape
    pages = cache.reshape(B, Hkv, M // page, page, D).transpose(1, 2).flatten(0, 1)
    place = torch.randperm(pages.shape[0], generator=generator).to(cache.device)
    shuffled = torch.empty_like(pages)
    shuffled[place] = pages
    return shuffled, place.to(torch.int32).reshape(B, M // page)


def decode_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def tensors(**sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
        return qkv(generator, dtype, device, **sizes)

    def lengths(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    yield Sample("grouped", (*tensors(Hq=4, Hkv=2, N=1, M=37, D=8), lengths(37, 5)), {})
    query, key, value = tensors(Hq=4, Hkv=2, N=3, M=24, D=8, Dv=6)
    state = generator.get_state()
    key_pages, table = paged(key, 4, generator)
    generator.set_state(state)
    value_pages, _ = paged(value, 4, generator)
    table[1, 3:] = 2**31 - 1  # past the length: never read
    yield Sample(
        "paged_window",
        (query, key_pages, value_pages, lengths(24, 10).long()),
        {"page_table": table, "window_left": 6, "sink_tokens": 2, "softcap": 4.0},
    )
    tree = (torch.rand(2, 1, 5, 40, generator=generator) < 0.6).to(device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    yield Sample(
        "tree_mask_sink_alibi",
        (*tensors(Hq=6, Hkv=2, N=5, M=40, D=8), lengths(40, 0)),
        {
            "mask": tree,
            "causal": False,
            "sink": torch.randn(6, generator=generator).to(device, dtype),
            "alibi_slopes": torch.rand(6, generator=generator).to(device, wide),
            "scale": 0.4,
        },
    )
    yield Sample("many_splits", (*tensors(B=1, N=2, M=1100, D=8), lengths(1090)), {})
    yield Sample("fewer_keys_than_queries", (*tensors(N=4, M=9, D=8), lengths(2, 9)), {})
    yield Sample("no_keys", (*tensors(N=2, M=0, D=8), lengths(0, 0)), {})
    yield Sample("no_sequences", (*tensors(B=0, N=2, M=6, D=8), lengths()), {})


def decode_errors(device: torch.device) -> Iterator[ErrorSample]:
    query, key, value = qkv(
        torch.Generator().manual_seed(0), torch.float32, device, Hq=4, Hkv=2, N=1, M=8, D=8
    )
    lens = torch.tensor([8, 3], device=device)
    table = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32, device=device)
    right = (query, key, value, lens)
    cases: dict[str, tuple[tuple[Tensor, ...], dict[str, Any], type[Exception], str]] = {
        "cache_dtype": ((query, key.half(), value, lens), {}, TypeError, "key_cache"),
        "lens_dtype": ((*right[:3], lens.float()), {}, TypeError, "cache_lens"),
        "table_dtype": (right, {"page_table": table.long()}, TypeError, "page_table"),
        "query_3d": ((query[0], key, value, lens), {}, RuntimeError, "query"),
        "cache_width": ((query, key[..., :7], value, lens), {}, RuntimeError, "key_cache"),
        "cache_batch": ((query, key[:1], value[:1], lens), {}, RuntimeError, "key_cache"),
        "value_cache": ((query, key, value[:, :, :4], lens), {}, RuntimeError, "value_cache"),
        "lens_shape": ((*right[:3], lens[:1]), {}, RuntimeError, "cache_lens"),
        "table_shape": (right, {"page_table": table[:1]}, RuntimeError, "page_table"),
        "too_long": ((*right[:3], lens + 1), {}, RuntimeError, "cache_lens from 0 to 8, got 9"),
        "negative": ((*right[:3], lens - 4), {}, RuntimeError, "cache_lens"),
        "page_beyond": (right, {"page_table": table + 1}, RuntimeError, "page_table"),
        "mask_shape": (
            right,
            {"mask": torch.ones(1, 7, dtype=torch.bool, device=device)},
            RuntimeError,
            "mask",
        ),
        "softcap": (right, {"softcap": -1.0}, ValueError, "softcap"),
    }
    for name, (args, kwargs, error, match) in cases.items():
        yield ErrorSample(name, args, kwargs, error, match)


def merge_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def partials(count: int, *shape: int) -> tuple[list[Tensor], list[Tensor]]:
        outs = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(count)]
        lses = [torch.randn(shape[:-1], generator=generator).to(device, wide) for _ in range(count)]
        return outs, lses

    yield Sample("three", partials(3, 2, 4, 7, 8), {})
    outs, lses = partials(2, 5, 19)
    lses[0][1] = -math.inf
    lses[0][3] = lses[1][3] = -math.inf
    yield Sample("some_kept_nothing", (outs, lses), {})
    outs, lses = partials(3, 2, 6, 8)
    levels = torch.tensor([0.0, 1e2, -1e4, -1e6, -1e9, -3e38], dtype=wide, device=device)
    if wide == torch.float64:  # whose differences leave digits for gradcheck's steps of 1e-6
        levels = levels.clamp(min=-1e4)
    yield Sample("large_lses", (outs, [lse + levels for lse in lses]), {})
    yield Sample("one", partials(1, 3, 5), {})
    outs, lses = partials(2, 6, 12)
    yield Sample("strided", ([out.t()[:6, :6] for out in outs], [lse * 2 for lse in lses]), {})
    yield Sample("no_rows", partials(2, 0, 8), {})


def merge_errors(device: torch.device) -> Iterator[ErrorSample]:
    out, lse = torch.ones(3, 5, device=device), torch.ones(3, device=device)
    cases: dict[str, tuple[tuple[list[Tensor], list[Tensor]], type[Exception], str]] = {
        "no_tensors": (([], []), RuntimeError, "outs"),
        "fewer_lses": (([out, out], [lse]), RuntimeError, "lses"),
        "out_dtype": (([out, out.half()], [lse, lse]), TypeError, "outs"),
        "lse_dtype": (([out.half()], [lse.half()]), TypeError, "lses"),
        "out_shape": (([out, out[:2]], [lse, lse]), RuntimeError, "outs"),
        "lse_shape": (([out], [lse[:2]]), RuntimeError, "lses"),
        "no_width": (([lse[0]], [lse]), RuntimeError, "outs"),
    }
    for name, (args, error, match) in cases.items():
        yield ErrorSample(name, args, {}, error, match)


OPERATORS = (
    Operator(
        name="attention_varlen",
        samples=varlen_samples,
        errors=varlen_errors,
        reference=reference.attention_varlen,
        naive=reference.attention_varlen_naive,
        differentiable=(0, 1, 2, "sink"),
        autocast="lower",
        autocast_args=(0, 1, 2),
    ),
    Operator(
        name="attention_decode",
        samples=decode_samples,
        errors=decode_errors,
        reference=reference.attention_decode,
        naive=reference.attention_decode_naive,
    ),
    Operator(
        name="attention_merge",
        samples=merge_samples,
        errors=merge_errors,
        reference=reference.attention_merge,
        differentiable=(0, 1),
    ),
)
