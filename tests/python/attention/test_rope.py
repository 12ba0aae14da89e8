"""rope beyond the generated checks: shapes, turning back, tables without gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common_checks import DEVICE, assert_equals_reference
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.samples.attention import angles

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ROPE = OPERATORS["rope"]

any_call = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "wide_angles": st.booleans(),
        "seed": st.integers(0, 1000),
        "shape": st.lists(st.integers(0, 5), min_size=1, max_size=4),
        "D": st.integers(0, 40),
        "pairs": st.integers(0, 20),
        "lacking": st.integers(0, 3),
        "single": st.lists(st.booleans(), min_size=4, max_size=4),
        "interleaved": st.booleans(),
        "conjugate": st.booleans(),
    }
)


@given(call=any_call)
def test_any_shape_and_argument(call: dict[str, Any], isa: str) -> None:
    dtype, generator = call["dtype"], torch.Generator().manual_seed(call["seed"])
    x = torch.randn(*call["shape"], call["D"], generator=generator).to(dtype)
    rows = [1 if one else size for one, size in zip(call["single"], call["shape"], strict=False)]
    rows = rows[min(call["lacking"], len(rows) - 1) :]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = (*rows, min(call["pairs"], call["D"] // 2))
    cos, sin = angles(generator, table, wide if call["wide_angles"] else dtype, DEVICE)
    options = {name: call[name] for name in ("interleaved", "conjugate")}
    assert_equals_reference(ROPE, Sample("any", (x, cos, sin), options), dtype, magnitude=1.0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_conjugate_turns_back(interleaved: bool, isa: str) -> None:
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    cos, sin = angles(torch.Generator(), (7, 4), torch.float64, DEVICE)
    there = torch.ops.fulgurite.rope(x, cos, sin, interleaved=interleaved)
    back = torch.ops.fulgurite.rope(there, cos, sin, interleaved=interleaved, conjugate=True)
    torch.testing.assert_close(back, x)
    assert torch.equal(there[..., 8:], x[..., 8:])  # the rest passes through


def test_wide_angles_are_not_rounded_to_16_bit(isa: str) -> None:
    """With float32 cos and sin the only rounding is that of the result."""
    x = torch.randn(3, 50, 64).bfloat16()
    cos, sin = angles(torch.Generator(), (50, 32), torch.float32, DEVICE)
    out = torch.ops.fulgurite.rope(x, cos, sin)
    want = ROPE.reference(x.double(), cos.double(), sin.double())
    error = (out.double() - want).abs()
    assert (error <= want.abs() * 2**-8 * (1 + 2**-12) + 2**-24).all()


def test_gradient_of_the_tables_is_refused() -> None:
    x = torch.randn(5, 8)
    cos, sin = angles(torch.Generator(), (5, 4), torch.float32, DEVICE)
    with pytest.raises(NotImplementedError, match=r"fulgurite::rope: .*cos and sin"):
        torch.ops.fulgurite.rope(x, cos.requires_grad_(), sin)
