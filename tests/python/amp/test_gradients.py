"""grad_stats, clip_multiplier and unscale_: every position, every dtype, torch beside them."""

from __future__ import annotations

import math

import pytest
import torch

from common_checks import assert_same_bits, scattered, threads
from fulgurite.testing.backend import backends, using

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
stats = torch.ops.fulgurite.grad_stats


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_bad_element_at_every_position(isa: str, dtype: torch.dtype, value: float) -> None:
    for n in (1, 15, 16, 17, 67):
        for position in range(n):
            grad = torch.ones(n, dtype=dtype)
            grad[position] = value
            found, norm_sq, first_bad = stats([torch.ones(3), grad, grad])
            assert (found.item(), first_bad.item()) == (1.0, 1), position
            assert not math.isfinite(norm_sq.item())
            unscaled, flag = grad.clone(), torch.zeros(())
            torch.ops.fulgurite.unscale_([torch.ones(3), unscaled], flag, torch.tensor(0.5))
            assert flag.item() == 1.0, position


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite(isa: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    grad = torch.full((20,), largest, dtype=dtype)
    found, norm_sq, first_bad = stats([grad], inv_scale=torch.tensor(2.0**-20))
    assert (found.item(), first_bad.item()) == (0.0, -1)
    if dtype != torch.float64:
        assert norm_sq.item() == pytest.approx(20 * (largest * 2.0**-20) ** 2, rel=1e-12)
    smallest = torch.full((20,), torch.finfo(dtype).smallest_normal / 2, dtype=dtype)
    assert stats([smallest])[0].item() == 0.0


def test_a_sum_beyond_float32_is_no_overflow() -> None:
    found, norm_sq, first_bad = stats([torch.full((1000,), 3e38)])
    assert (found.item(), first_bad.item()) == (0.0, -1)
    assert norm_sq.item() == pytest.approx(1000 * float(torch.tensor(3e38)) ** 2, rel=1e-12)


def test_the_empty_list() -> None:
    for arguments in ({}, {"inv_scale": torch.tensor(0.5)}):
        found, norm_sq, first_bad = stats([], **arguments)
        assert (found.item(), norm_sq.item(), first_bad.item()) == (0.0, 0.0, -1)
        assert (found.dtype, norm_sq.dtype, first_bad.dtype) == (
            torch.float32,
            torch.float64,
            torch.int64,
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_the_norm(dtype: torch.dtype) -> None:
    """One tree: any instruction set, number of threads, and strides."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (40_001,), (100, 129), (0,), (17, 5, 3)]
    grads = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    expected = stats(grads, inv_scale=torch.tensor(0.3))[1]
    moved = [scattered(grad) for grad in grads]
    for backend in backends():
        with using(backend.set):
            for count in (1, 2, 3):
                with threads(count):
                    assert torch.equal(stats(grads, inv_scale=torch.tensor(0.3))[1], expected)
            assert torch.equal(stats(moved, inv_scale=torch.tensor(0.3))[1], expected)
    exact = sum(((g.double() * float(torch.tensor(0.3))) ** 2).sum() for g in grads)
    assert expected.item() == pytest.approx(exact.item(), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("inv_scale", [1.0, 2.0**-16, 0.3])
def test_unscale_is_torchs(isa: str, dtype: torch.dtype, inv_scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for bad in (False, True):
        grads = [torch.randn(n, generator=generator, dtype=dtype) for n in (1, 7, 64, 20_001)]
        if bad:
            grads[2][63] = math.nan
        ours, torchs = [g.clone() for g in grads], [g.clone() for g in grads]
        found, expected = torch.zeros(()), torch.zeros(())
        torch.ops.fulgurite.unscale_(ours, found, torch.tensor(inv_scale))
        torch._amp_foreach_non_finite_check_and_unscale_(torchs, expected, torch.tensor(inv_scale))
        assert torch.equal(found, expected)
        finite = [{"grad": g.nan_to_num()} for g in torchs]
        for one, other in zip(ours, finite, strict=True):
            assert_same_bits({"grad": one.nan_to_num()}, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_unscale_rounds_sixteen_bits_once(isa: str, dtype: torch.dtype) -> None:
    grads = torch.arange(1 << 16).to(torch.int16).view(dtype)
    grads = grads[grads.isfinite()].clone()
    expected = (grads.float() * torch.tensor(0.3)).to(dtype)
    found = torch.zeros(())
    torch.ops.fulgurite.unscale_([grads], found, torch.tensor(0.3))
    assert torch.equal(grads, expected)
    assert found.item() == 0.0


def test_unscale_keeps_an_older_flag_and_writes_through_strides(isa: str) -> None:
    grad = torch.randn(6, 7, 5)
    view = scattered(grad).permute(2, 0, 1)
    found = torch.tensor(1.0)
    torch.ops.fulgurite.unscale_([view], found, torch.tensor(0.5))
    assert torch.equal(view, (grad * 0.5).permute(2, 0, 1))
    assert found.item() == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 3, 8])
def test_unscale_at_any_address(isa: str, dtype: torch.dtype, offset: int) -> None:
    whole = torch.arange(9000, dtype=dtype) / 64
    expected = whole.clone()
    expected[offset:-offset] *= 0.5
    torch.ops.fulgurite.unscale_([whole[offset:-offset]], torch.zeros(()), torch.tensor(0.5))
    assert torch.equal(whole, expected)


def test_clip_multiplier() -> None:
    clip = torch.ops.fulgurite.clip_multiplier
    norm_sq = torch.tensor(25.0, dtype=torch.float64)
    assert clip(norm_sq, 10.0).item() == 1.0
    assert clip(norm_sq, 1.0, eps=0.0).item() == torch.tensor(0.2).item()
    assert clip(norm_sq, 1.0).item() == torch.tensor(1 / (5 + 1e-6)).item()
    assert (
        clip(norm_sq, 1.0, inv_scale=torch.tensor(0.5), eps=0.0).item() == torch.tensor(0.1).item()
    )
    assert clip(norm_sq * 0, 0.0).item() == 0.0
    assert clip(norm_sq * math.inf, 1.0).item() == 0.0
    assert math.isnan(clip(norm_sq * math.nan, 1.0).item())
    assert clip(norm_sq, math.inf).item() == 1.0


def test_sparse_gradients_are_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=r"grad_stats: expected grads\[1\] of layout strided"):
        stats([torch.ones(3), torch.ones(3).to_sparse()])
