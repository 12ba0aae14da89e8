"""rms_norm beyond the generated checks: bits of rows, special values, both modes of derivatives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as tF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

import fulgurite
import fulgurite.nn.functional as F
from common_checks import assert_equals_reference, assert_same_bits, threads
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.backend import always_spread
from fulgurite.testing.references import norm as reference
from fulgurite.testing.registry import ALL_DTYPES

NORM = OPERATORS["rms_norm"]
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: str(d)[6:])


def inputs_of(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, the gradient of out."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in "xg")
    return x, torch.rand(shape[-1:], generator=generator).to(dtype), grad


def trained(x: Tensor, weight: Tensor, grad: Tensor) -> dict[str, Tensor]:
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = F.rms_norm(*leaves, 1e-5, 1.0)
    of_x, of_weight = torch.autograd.grad(out, leaves, grad)
    return {"out": out.detach(), "x": of_x, "weight": of_weight}


@given(
    seed=st.integers(0, 1000),
    shape=st.lists(st.integers(0, 5), max_size=3),
    H=st.integers(0, 300),
    shift=st.sampled_from([0.0, 1.0]),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_any_size_equals_the_reference(
    isa: str,
    seed: int,
    shape: list[int],
    H: int,
    shift: float,
    transposed: bool,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, H, generator=generator).to(dtype)
    if transposed and shape:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    weight = torch.rand(H, generator=generator).to(dtype)
    assert_equals_reference(NORM, Sample("", (x, weight), {"weight_shift": shift}), dtype)


@each_dtype
def test_a_row_has_the_bits_that_it_has_alone(dtype: torch.dtype, isa: str) -> None:
    x, weight, grad = inputs_of(dtype, 300, 70)
    together = trained(x, weight, grad)
    for row in (0, 17, 299):
        alone = trained(x[row], weight, grad[row])
        for name in ("out", "x"):
            assert_same_bits({name: alone[name]}, {name: together[name][row]})


@each_dtype
def test_strides_do_not_show_in_bits(dtype: torch.dtype, isa: str) -> None:
    x, weight, grad = inputs_of(dtype, 4, 50, 6, 40)
    expected = trained(x, weight, grad)
    turned = trained(
        x.transpose(1, 3).contiguous().transpose(1, 3),
        weight.repeat_interleave(2)[::2],
        grad.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    )
    assert_same_bits(turned, expected)
    ones = torch.ones((), dtype=dtype)
    assert_same_bits(trained(x, weight, ones.expand_as(x)), trained(x, weight, torch.ones_like(x)))


@each_dtype
def test_sums_over_many_rows_have_the_same_bits_for_any_threads(
    dtype: torch.dtype, isa: str
) -> None:
    x, weight, grad = inputs_of(dtype, 20000, 24)
    with threads(1):
        one = trained(x, weight, grad)
    for count in (2, 7):
        with threads(count), always_spread():
            assert_same_bits(trained(x, weight, grad), one)


@each_dtype
def test_nan_and_infinity_stay_in_their_row(dtype: torch.dtype, isa: str) -> None:
    x, weight, grad = inputs_of(dtype, 6, 40)
    expected = trained(x, weight, grad)
    others = torch.tensor([0, 2, 3, 5])
    x[1, 3], x[4, 39] = math.nan, math.inf
    found = trained(x, weight, grad)
    assert found["out"][1].isnan().all()
    assert found["out"][4].isnan().sum() == 1
    for name in ("out", "x"):
        assert_same_bits({name: found[name][others]}, {name: expected[name][others]})


def test_rows_of_zeros(isa: str) -> None:
    x = torch.zeros(2, 20)
    assert torch.equal(F.rms_norm(x), x)
    assert F.rms_norm(x, eps=0.0).isnan().all()


def test_large_numbers_in_sixteen_bits(isa: str) -> None:
    """Their squares are beyond float16."""
    x = torch.full((3, 64), 3e4, dtype=torch.float16)
    assert torch.equal(F.rms_norm(x), torch.ones_like(x))


def test_as_torch_computes_it() -> None:
    for dtype in (torch.float32, torch.float64):
        x, weight, grad = inputs_of(dtype, 5, 33)
        found = trained(x, weight - 1, grad)
        leaves = x.requires_grad_(), weight.requires_grad_()
        out = tF.rms_norm(leaves[0], (33,), leaves[1], 1e-5)
        torch.testing.assert_close(found["out"], out)
        for name, plain in zip(
            ("x", "weight"), torch.autograd.grad(out, leaves, grad), strict=True
        ):
            torch.testing.assert_close(found[name], plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_derivatives_round_once(dtype: torch.dtype) -> None:
    x, weight, grad = inputs_of(dtype, 4, 30)

    def penalty(x: Tensor, weight: Tensor, grad: Tensor, norm: object) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, grad)]
        out = norm(leaves[0], leaves[1], eps=1e-5)  # type: ignore[operator]
        firsts = torch.autograd.grad(out, leaves[:2], leaves[2], create_graph=True)
        return list(torch.autograd.grad([f.square().sum() for f in firsts], leaves))

    found = penalty(x, weight, grad, torch.ops.fulgurite.rms_norm)
    exact = penalty(x.double(), weight.double(), grad.double(), reference.rms_norm)
    rtol = 1e-4 if dtype == torch.float32 else 0.05
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol * b.abs().max().item())


def test_forward_mode() -> None:
    x, weight, direction = inputs_of(torch.float64, 4, 30)
    turn = torch.linspace(-1, 1, 30, dtype=torch.float64)
    with forward_ad.dual_level():
        duals = forward_ad.make_dual(x, direction), forward_ad.make_dual(weight, turn)
        found = forward_ad.unpack_dual(F.rms_norm(*duals)).tangent
    h = 1e-6
    ends = [F.rms_norm(x + s * h * direction, weight + s * h * turn) for s in (1, -1)]
    assert found is not None
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-7, atol=1e-7)


def test_what_runs() -> None:
    x, weight, grad = inputs_of(torch.float32, 1000, 512)
    rows = fulgurite.explain(F.rms_norm, x, weight)
    assert [(row["kernel"], row["tasks"]) for row in rows] == [("rms_norm", 32)]
    rows = fulgurite.explain(trained, x, weight, grad)
    assert [(row["kernel"], row["tasks"]) for row in rows] == [
        ("rms_norm", 32),
        ("rms_norm_backward", 32),
        ("rms_norm_sums", 8),
    ]
