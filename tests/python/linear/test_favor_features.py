"""Random features beyond the generated checks: unbiased estimates, bits, packs, special values."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite
import fulgurite.nn.functional as F
from common_checks import assert_equals_reference, assert_same_bits, threads
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.backend import always_spread
from fulgurite.testing.registry import ALL_DTYPES

FEATURES = OPERATORS["favor_features"]
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: str(d)[6:])
each_side = pytest.mark.parametrize("is_query", [True, False], ids=["query", "key"])


def inputs_of(
    seed: int, dtype: torch.dtype, B: int, H: int, N: int, D: int, m: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, H, N, D, generator=generator).to(dtype)
    return x, torch.randn(m, D, generator=generator).to(dtype)


def gradients(x: Tensor, projection: Tensor, grad: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, projection)]
    found = torch.autograd.grad(F.favor_features(*leaves, **kwargs), leaves, grad)
    return dict(zip(("grad of x", "grad of projection"), found, strict=True))


@given(
    seed=st.integers(0, 1000),
    H=st.integers(1, 3),
    N=st.integers(0, 60),
    D=st.integers(1, 40),
    m=st.integers(0, 70),
    is_query=st.booleans(),
    kind=st.sampled_from(["positive", "hyperbolic"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_any_size_equals_the_reference(
    isa: str,
    seed: int,
    H: int,
    N: int,
    D: int,
    m: int,
    is_query: bool,
    kind: str,
    dtype: torch.dtype,
) -> None:
    args = inputs_of(seed, dtype, 1, H, N, D, m)
    sample = Sample("", args, {"is_query": is_query, "kind": kind})
    assert_equals_reference(FEATURES, sample, dtype, magnitude=1.0)


# ---- what they estimate


def estimates(kind: str, query: Tensor, key: Tensor, projection: Tensor) -> Tensor:
    """Of exp(q·k/√D), from features without eps whose c is put back."""
    sides = []
    for x in (query, key):
        one = x[None, None]  # every position by itself, so that c is known
        features = F.favor_features(one, projection, is_query=True, eps=0.0, kind=kind)
        p = one * x.shape[-1] ** -0.25 @ projection.T
        most = p.abs() if kind == "hyperbolic" else p
        sides.append(features * most.amax(-1, keepdim=True).exp())
    found: Tensor = (sides[0] @ sides[1].transpose(-1, -2))[0, 0]
    return found


@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_estimates_are_unbiased(kind: str) -> None:
    torch.manual_seed(0)
    D, m, draws = 8, 64, 2000
    query, key = torch.randn(2, 6, D, dtype=torch.float64).mul(0.7).unbind()
    exact = (query @ key.T / D**0.5).exp()
    errors = torch.stack(
        [
            estimates(kind, query, key, F.orthogonal_projection(m, D, torch.float64)) / exact - 1
            for _ in range(draws)
        ]
    )
    standard = errors.std(0) / draws**0.5
    assert (errors.mean(0).abs() <= 4 * standard).all()


def test_the_error_falls_as_one_over_the_root_of_features() -> None:
    torch.manual_seed(0)
    D = 8
    query, key = torch.randn(2, 16, D, dtype=torch.float64).mul(0.4).unbind()
    exact = (query @ key.T / D**0.5).exp()

    def rms(m: int) -> float:
        found = [
            estimates("positive", query, key, F.orthogonal_projection(m, D, torch.float64))
            for _ in range(300)
        ]
        return float((torch.stack(found) / exact - 1).square().mean().sqrt())

    for m in (32, 128, 512):
        assert 1.75 < rms(m) / rms(4 * m) < 2.25


def test_rows_of_a_projection() -> None:
    torch.manual_seed(0)
    rows = F.orthogonal_projection(40, 16, torch.float64)
    assert rows.shape == (40, 16)
    for block in rows.split(16):
        products = block @ block.T
        lengths = products.diagonal()
        torch.testing.assert_close(products, lengths.diag(), rtol=0, atol=1e-10)
    many = torch.cat([F.orthogonal_projection(16, 16, torch.float64) for _ in range(600)])
    squares = many.square().sum(1)  # χ² of 16 degrees: mean 16, variance 32
    assert abs(squares.mean() - 16) < 4 * (32 / 9600) ** 0.5
    assert abs(squares.var() - 32) < 3
    # Without the signs of R's diagonal first entries of Q are nearly all below 0.
    assert abs(many.mean()) < 4 / many.numel() ** 0.5
    assert 0.45 < (many.view(600, 16, 16)[:, 0, 0] < 0).double().mean() < 0.55


def test_projections_are_drawn_from_the_default_generator() -> None:
    torch.manual_seed(5)
    first = F.orthogonal_projection(10, 4)
    torch.manual_seed(5)
    scripted = torch.jit.script(F.orthogonal_projection)
    assert torch.equal(scripted(10, 4), first)
    assert first.dtype == torch.float32
    assert F.orthogonal_projection(0, 4).shape == (0, 4)
    for sizes in ((-1, 4), (4, 0)):
        with pytest.raises(ValueError, match="orthogonal_projection: expected features of at"):
            F.orthogonal_projection(*sizes)


# ---- bits


@each_dtype
@each_side
def test_packed_sequences_are_what_they_are_alone(
    isa: str, is_query: bool, dtype: torch.dtype
) -> None:
    x, projection = inputs_of(0, dtype, 1, 3, 1300, 5, 21)
    bounds = [0, 3, 3, 60, 1250]
    options: dict[str, Any] = {"is_query": is_query, "kind": "hyperbolic"}
    pack = torch.tensor(bounds, dtype=torch.int32)
    out = F.favor_features(x, projection, cu_seqlens=pack, **options)
    grad = torch.randn_like(out)
    grad_x = gradients(x, projection, grad, cu_seqlens=pack, **options)["grad of x"]
    for a, b in pairwise(bounds):
        one = x[:, :, a:b]
        alone = F.favor_features(one, projection, **options)
        grad_alone = gradients(one, projection, grad[:, :, a:b], **options)["grad of x"]
        assert_same_bits(
            {"out": out[:, :, a:b], "grad": grad_x[:, :, a:b]}, {"out": alone, "grad": grad_alone}
        )
    assert out[:, :, 1250:].count_nonzero() == grad_x[:, :, 1250:].count_nonzero() == 0


@each_side
def test_bits_do_not_depend_on_threads_batch_or_layout(isa: str, is_query: bool) -> None:
    x, projection = inputs_of(1, torch.float32, 2, 3, 1100, 8, 40)
    grad = torch.randn(2, 3, 1100, 40)
    options: dict[str, Any] = {"is_query": is_query}

    def results(x: Tensor) -> dict[str, Tensor]:
        out = F.favor_features(x, projection, **options)
        return {"out": out, **gradients(x, projection, grad, **options)}

    with threads(1):
        expected = results(x)
    with threads(3), always_spread():
        assert_same_bits(results(x), expected)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same_bits(results(turned), expected)
    last = F.favor_features(x[1:, 2:], projection, **options)
    assert_same_bits({"out": last}, {"out": expected["out"][1:, 2:]})


@each_side
@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_gradcheck_of_what_the_maximum_does_not_change(kind: str, is_query: bool) -> None:
    """Without eps c is a factor, which a norm over all that share it takes away."""
    inputs = [t.requires_grad_() for t in inputs_of(6, torch.float64, 1, 2, 5, 4, 7)]

    def normed(x: Tensor, projection: Tensor) -> Tensor:
        out = F.favor_features(x, projection, is_query=is_query, eps=0.0, kind=kind)
        return out / out.sum((-1,) if is_query else (-2, -1), keepdim=True)

    assert torch.autograd.gradcheck(normed, inputs)


# ---- special values


def test_nan_stays_in_its_position() -> None:
    x, projection = inputs_of(2, torch.float32, 1, 2, 9, 4, 6)
    x[0, 1, 3, 2] = torch.nan
    for is_query in (True, False):
        out = F.favor_features(x, projection, is_query=is_query)
        assert out.isnan().all(-1).nonzero().tolist() == [[0, 1, 3]]
        assert out.isfinite().sum() == 17 * 6


@each_dtype
@each_side
def test_large_numbers_do_not_overflow(isa: str, is_query: bool, dtype: torch.dtype) -> None:
    x, projection = inputs_of(3, dtype, 1, 1, 5, 16, 32)
    out = F.favor_features(x * 100, projection, is_query=is_query, eps=1e-3)
    assert out.isfinite().all()
    assert (out >= 0).all()
    assert float(out.max()) <= (1 + 1e-2) / 32**0.5


def test_features_changed_in_place_raise_in_the_backward() -> None:
    x, projection = inputs_of(4, torch.float32, 1, 1, 3, 4, 5)
    out = F.favor_features(x.requires_grad_(), projection, is_query=True)
    with torch.no_grad():
        out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_explain_names_the_kernels() -> None:
    x, projection = inputs_of(5, torch.float32, 2, 2, 2000, 4, 5)
    rows = fulgurite.explain(
        lambda: F.favor_features(x, projection.requires_grad_(), is_query=False).sum().backward()
    )
    assert [(row["kernel"], row["tasks"]) for row in rows] == [
        ("favor_maxima", 8),
        ("favor_features", 8),
        ("favor_features_backward", 8),
        ("favor_projection_sums", 1),
    ]
