"""Packed sequences, caches, merging: what ties them to dense attention, what may not leak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite
import fulgurite.nn.functional as F
from common_checks import DEVICE, assert_equals_reference, threads
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.backend import always_spread
from fulgurite.testing.samples.attention_cache import offsets, paged

DTYPES = (torch.float32, torch.bfloat16)


def rows(dtype: torch.dtype, T: int, H: int, D: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, H, D, generator=generator).to(dtype)


def as_batch(x: Tensor) -> Tensor:
    """(T,H,D) of one sequence as (1,H,T,D)."""
    return x.transpose(0, 1)[None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_sequences_have_the_bits_of_each_alone(isa: str, dtype: torch.dtype) -> None:
    lengths = (3, 0, 140, 1, 97)
    starts = offsets(DEVICE, torch.int64, *lengths)
    tensors = [
        rows(dtype, sum(lengths), h, 16, seed).requires_grad_() for seed, h in enumerate((4, 2, 2))
    ]
    grad = rows(dtype, sum(lengths), 4, 16, 9)
    out = F.attention_varlen(*tensors, starts, starts, causal=True, window_left=50)
    grads = torch.autograd.grad(out, tensors, grad)
    for first, last in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        alone = [as_batch(x[first:last]).detach().requires_grad_() for x in tensors]
        dense = F.attention(*alone, causal=True, window_left=50)
        assert torch.equal(as_batch(out[first:last]), dense)
        expected = torch.autograd.grad(dense, alone, as_batch(grad[first:last]))
        for actual, one in zip(grads, expected, strict=True):
            assert torch.equal(as_batch(actual[first:last]), one)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    causal=st.booleans(),
    window=st.integers(-1, 20),
    rest=st.integers(0, 3),
)
def test_any_packing(
    lengths: list[tuple[int, int]], heads: tuple[int, int], causal: bool, window: int, rest: int
) -> None:
    starts = [offsets(DEVICE, torch.int32, *(pair[side] for pair in lengths)) for side in (0, 1)]
    totals = [int(s[-1]) + rest for s in starts]
    query = rows(torch.float32, totals[0], heads[0], 8)
    key, value = (rows(torch.float32, totals[1], heads[1], 8, seed) for seed in (1, 2))
    call = Sample("drawn", (query, key, value, *starts), {"causal": causal, "window_left": window})
    assert_equals_reference(OPERATORS["attention_varlen"], call, torch.float32, magnitude=8**0.5)


def test_rows_of_other_sequences_never_leak(isa: str) -> None:
    starts = offsets(DEVICE, torch.int32, 5, 6, 5)
    clean = [rows(torch.float32, 18, 2, 8, seed) for seed in range(3)]
    dirty = [x.clone() for x in clean]
    for x in dirty:
        x[5:11] = torch.nan  # the second sequence
        x[16:] = torch.nan  # nobody's
    leaves = [x.requires_grad_() for x in dirty]
    out = F.attention_varlen(*leaves, starts, starts)
    expected = F.attention_varlen(*clean, starts, starts)
    others = [*range(5), *range(11, 16)]
    assert torch.equal(out[others], expected[others])
    assert out[5:11].isnan().all()
    assert (out[16:] == 0).all()
    for grad in torch.autograd.grad(out[others].sum(), leaves):
        assert grad[others].isfinite().all()
        assert (grad[16:] == 0).all()


def cache_of(dtype: torch.dtype, B: int = 3, H: int = 2, M: int = 1200, D: int = 24) -> Tensor:
    return torch.randn(B, H, M, D, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 3, 40])
def test_decoding_equals_attention_over_what_is_cached(
    isa: str, dtype: torch.dtype, N: int
) -> None:
    cache = cache_of(dtype)
    query = cache_of(dtype, H=8, M=N)
    lens = torch.tensor([1200, 517, 64])
    out, lse = F.attention_decode(query, cache, cache, lens, window_left=700, sink_tokens=4)
    for b, length in enumerate(lens.tolist()):
        keys = cache[b : b + 1, :, :length]
        dense, dense_lse = F.attention(
            query[b : b + 1],
            keys,
            keys,
            causal=True,
            window_left=700,
            sink_tokens=4,
            return_lse=True,
        )
        tolerance = {} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-9}
        torch.testing.assert_close(out[b : b + 1], dense, **tolerance)
        torch.testing.assert_close(lse[b : b + 1], dense_lse)


@pytest.mark.parametrize("page", [1, 16, 100])
def test_pages_have_the_bits_of_a_contiguous_cache(isa: str, page: int) -> None:
    cache, query = cache_of(torch.bfloat16), cache_of(torch.bfloat16, H=4, M=2)
    lens = torch.tensor([1200, 0, 333])
    pages, table = paged(cache, page, torch.Generator().manual_seed(2))
    expected = F.attention_decode(query, cache, cache, lens)
    actual = F.attention_decode(query, pages, pages, lens, page_table=table)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_decoding_has_the_same_bits_alone_and_for_any_threads(isa: str) -> None:
    cache, query = cache_of(torch.float32), cache_of(torch.float32, H=4, M=1)
    lens = torch.tensor([1200, 700, 333])
    with threads(1):
        out, lse = F.attention_decode(query, cache, cache, lens)
    for count in (2, 3, 8):
        with threads(count), always_spread():
            again, _ = F.attention_decode(query, cache, cache, lens)
        assert torch.equal(again, out)
    alone, alone_lse = F.attention_decode(query[1:2], cache[1:2], cache[1:2], lens[1:2])
    assert torch.equal(alone, out[1:2])
    assert torch.equal(alone_lse, lse[1:2])


def test_a_cache_past_its_length_and_what_the_mask_hides_never_leak(isa: str) -> None:
    cache, query = cache_of(torch.float32, B=1, M=300), cache_of(torch.float32, B=1, H=4, M=3)
    lens = torch.tensor([200])
    mask = torch.ones(3, 300, dtype=torch.bool)
    mask[:, 150] = False
    clean = F.attention_decode(query, cache, cache, lens, mask=mask, causal=False)
    dirty = cache.clone()
    dirty[:, :, 200:] = torch.nan
    dirty[:, :, 150] = torch.inf
    actual = F.attention_decode(query, dirty, dirty, lens, mask=mask, causal=False)
    assert all(torch.equal(a, c) for a, c in zip(actual, clean, strict=True))


def test_decoding_refuses_a_gradient_when_it_is_asked_for() -> None:
    cache, query = cache_of(torch.float32), cache_of(torch.float32, M=1).requires_grad_()
    out, _ = F.attention_decode(query, cache, cache, torch.tensor([5, 6, 7]))
    with pytest.raises(RuntimeError, match="fulgurite::attention_decode"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_parts_gives_the_whole_with_its_gradients(isa: str, dtype: torch.dtype) -> None:
    query, key = cache_of(dtype, H=4, M=20), cache_of(dtype, M=90)
    leaves = [query.requires_grad_(), key.requires_grad_()]
    parts = [F.attention(query, k, k, return_lse=True) for k in key.split([30, 0, 60], dim=2)]
    out, lse = F.attention_merge([o for o, _ in parts], [part_lse for _, part_lse in parts])
    whole, whole_lse = F.attention(query, key, key, return_lse=True)
    tolerance = {} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
    torch.testing.assert_close(out, whole, **tolerance)
    torch.testing.assert_close(lse, whole_lse)
    grads, expected = (
        torch.autograd.grad(o.float().square().sum() + l.sum(), leaves)
        for o, l in ((out, lse), (whole, whole_lse))
    )
    tolerance = (
        {"rtol": 1e-5, "atol": 5e-5} if dtype == torch.float32 else {"rtol": 2**-4, "atol": 2**-4}
    )
    for grad, one in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, one, **tolerance)


def test_infinite_and_missing_partials() -> None:
    outs = [torch.full((3, 4), float(r)) for r in range(2)]
    lses = [torch.tensor([0.0, -torch.inf, torch.inf]), torch.tensor([-torch.inf, -torch.inf, 0.0])]
    outs[1][0] = torch.nan  # kept nothing: is not read
    out, lse = F.attention_merge(outs, lses)
    assert torch.equal(out[:2], torch.zeros(2, 4))
    assert lse.tolist() == [0.0, -torch.inf, torch.inf]
    assert torch.equal(out[2], torch.zeros(4))  # of the partial with +inf alone


def test_partials_of_infinite_lse_outweigh_the_others() -> None:
    """Results and gradients are those of equal partials beside ones that kept nothing."""
    outs = [torch.randn(1, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    grad_out = torch.randn(1, 4, dtype=torch.float64)

    def merged(levels: list[float]) -> list[Tensor]:
        lses = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in levels]
        out, lse = F.attention_merge(outs, lses)
        gradients = torch.autograd.grad((out * grad_out).sum() + 3.0 * lse.sum(), [*outs, *lses])
        return [out, *gradients]

    for levels, like in (
        ([torch.inf, 0.0, 5.0], [0.0, -torch.inf, -torch.inf]),
        ([torch.inf, torch.inf, 5.0], [0.0, 0.0, -torch.inf]),
        ([-torch.inf, 3.0, torch.inf], [-torch.inf, -torch.inf, 1.0]),
    ):
        for one, other in zip(merged(levels), merged(like), strict=True):
            assert torch.equal(one, other)
        lses = [torch.tensor([x], dtype=torch.float64) for x in levels]
        assert F.attention_merge(outs, lses)[1].item() == torch.inf


@torch.jit.script
def scripted(x: Tensor, starts: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    packed = F.attention_varlen(x, x, x, starts, starts, causal=True)
    again, lse = F.attention_varlen(x, x, x, starts, starts, causal=True, return_lse=True)
    cache = x.transpose(0, 1).unsqueeze(0)
    decoded, _ = F.attention_decode(cache[:, :, :1], cache, cache, lens)
    merged, _ = F.attention_merge([again, packed], [lse.t(), lse.t()])
    return packed, decoded, merged


def test_scripted() -> None:
    x = rows(torch.float32, 10, 2, 8)
    packed, decoded, merged = scripted(x, torch.tensor([0, 4, 10]), torch.tensor([7]))
    torch.testing.assert_close(merged, packed)
    assert decoded.shape == (1, 2, 1, 8)


def test_kernels_that_run() -> None:
    cache, query = cache_of(torch.float32), cache_of(torch.float32, H=4, M=1)
    ran = fulgurite.explain(F.attention_decode, query, cache, cache, torch.tensor([1200, 1, 0]))
    assert [row["kernel"] for row in ran] == ["attention_decode", "attention_decode_merge"]
    assert ran[0]["tasks"] == 2 * (3 + 1)  # heads × splits of 512 keys


def test_shares_of_skipped_tiles() -> None:
    x = cache_of(torch.float32, B=1, M=1024).requires_grad_()

    def share(**hiding: Any) -> list[float | None]:
        def step() -> None:
            F.attention(x, x, x, **hiding).sum().backward()

        rows = {row["kernel"]: row for row in fulgurite.explain(step)}
        assert rows["attention_forward"]["tile"] == (96, 128)
        assert rows["attention_pack"]["skipped"] is None
        return [rows[name]["skipped"] for name in ("attention_forward", "attention_backward")]

    assert share() == [0.0, 0.0]
    blocks = [(-(-1024 // 96)) * 8, sum(-(-min(i + 96, 1024) // 128) for i in range(0, 1024, 96))]
    assert share(causal=True) == pytest.approx([1 - blocks[1] / blocks[0]] * 2)
    assert min(share(causal=True, window_left=127)) > 0.7  # type: ignore[type-var]
