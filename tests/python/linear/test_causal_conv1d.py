"""The causal convolution beyond the generated checks: bits of pieces, packs and layouts, states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as tF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite
import fulgurite.nn.functional as F
from common_checks import assert_equals_reference, assert_same_bits, threads
from fulgurite.testing import OPERATORS, Sample
from fulgurite.testing.backend import always_spread
from fulgurite.testing.registry import ALL_DTYPES
from linear.packs import assert_packed_as_alone

CONV = OPERATORS["causal_conv1d"]
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: str(d)[6:])
each_width = pytest.mark.parametrize("W", [1, 2, 3, 4, 7])


def inputs_of(
    seed: int, dtype: torch.dtype, B: int, C: int, L: int, W: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, initial_state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return normal(B, C, L), normal(C, W) * W**-0.5, normal(C), normal(B, C, W - 1)


@given(
    seed=st.integers(0, 1000),
    B=st.integers(1, 3),
    C=st.integers(1, 70),
    L=st.integers(0, 300),
    W=st.integers(1, 9),
    silu=st.booleans(),
    transposed=st.booleans(),
    started=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_any_size_equals_the_reference(
    isa: str,
    seed: int,
    B: int,
    C: int,
    L: int,
    W: int,
    silu: bool,
    transposed: bool,
    started: bool,
    dtype: torch.dtype,
) -> None:
    x, weight, bias, state = inputs_of(seed, dtype, B, C, L, W)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if transposed else x
    options = {"bias": bias, "activation": "silu" if silu else "none"}
    if started:
        options["initial_state"] = state
    assert_equals_reference(CONV, Sample("", (x, weight), options), dtype, magnitude=1.0)


@each_dtype
@each_width
def test_pieces_have_the_bits_of_the_whole(isa: str, dtype: torch.dtype, W: int) -> None:
    """Down to single positions, also shorter than the width."""
    x, weight, bias, state = inputs_of(0, dtype, 2, 19, 40, W)
    whole = F.causal_conv1d(x, weight, bias, "silu", state)
    for cuts in ([1] * 40, [3, 1, 2, 30, 4], [17, 0, 23]):
        outs, last = [], state
        for piece in x.split(cuts, -1):
            out, last = F.causal_conv1d(piece, weight, bias, "silu", last)
            outs.append(out)
        assert_same_bits(
            {"out": torch.cat(outs, -1), "state": last}, {"out": whole[0], "state": whole[1]}
        )


@each_width
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_through_states_have_the_bits_of_the_whole(
    isa: str, dtype: torch.dtype, W: int
) -> None:
    x, weight, bias, state = inputs_of(1, dtype, 2, 5, 300, W)
    grad_out, grad_state = torch.randn_like(x), torch.randn_like(state)

    def gradients(cuts: list[int]) -> dict[str, Tensor]:
        leaves = [x.clone().requires_grad_(), state.clone().requires_grad_()]
        outs, last = [], leaves[1]
        for piece in leaves[0].split(cuts, -1):
            out, last = F.causal_conv1d(piece, weight, bias, "silu", last)
            outs.append(out)
        grads = torch.autograd.grad([torch.cat(outs, -1), last], leaves, [grad_out, grad_state])
        return {"x": grads[0], "initial_state": grads[1]}

    whole = gradients([300])
    for cuts in ([256, 44], [1, 2, 3, 294], [0, 299, 1]):
        assert_same_bits(gradients(cuts), whole, str(cuts))


@each_dtype
def test_packed_sequences_have_the_bits_that_they_have_alone(isa: str, dtype: torch.dtype) -> None:
    lengths, W = [5, 0, 1, 1030, 2, 0, 260], 4
    total = sum(lengths)
    x, weight, bias, _ = inputs_of(2, dtype, 1, 21, total + 3, W)
    state = inputs_of(3, dtype, len(lengths), 21, 0, W)[3]
    grads = torch.randn_like(x), torch.randn_like(state)

    def run(span: slice, own: slice, **kwargs: Any) -> dict[str, Tensor]:
        leaves = [x[..., span].detach().requires_grad_(), state[own].detach().requires_grad_()]
        out, last = F.causal_conv1d(leaves[0], weight, bias, "silu", leaves[1], **kwargs)
        found = torch.autograd.grad([out, last], leaves, [grads[0][..., span], grads[1][own]])
        return {"out": out, "state": last, "grad_x": found[0], "grad_initial_state": found[1]}

    assert_packed_as_alone(lengths, run)


@each_dtype
def test_layouts_and_batches_have_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    x, weight, bias, state = inputs_of(4, dtype, 3, 45, 200, 4)
    out, last = F.causal_conv1d(x, weight, bias, "silu", state)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    other = F.causal_conv1d(turned, weight, bias, "silu", state)
    assert_same_bits({"out": other[0], "state": other[1]}, {"out": out, "state": last})
    one = F.causal_conv1d(x[1:2], weight, bias, "silu", state[1:2])
    assert_same_bits({"out": one[0], "state": one[1]}, {"out": out[1:2], "state": last[1:2]})


@each_dtype
def test_gradients_have_the_same_bits_in_both_layouts(isa: str, dtype: torch.dtype) -> None:
    x, weight, bias, state = inputs_of(5, dtype, 2, 40, 1100, 4)
    grad = torch.randn_like(x)

    def gradients(x: Tensor, grad: Tensor) -> dict[str, Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias, state)]
        out, _ = F.causal_conv1d(leaves[0], leaves[1], leaves[2], "silu", leaves[3])
        found = torch.autograd.grad(out, leaves, grad)
        return {str(i): g for i, g in enumerate(found)}

    def turn(t: Tensor) -> Tensor:
        return t.transpose(1, 2).contiguous().transpose(1, 2)

    expected = gradients(x, grad)
    for other in ((turn(x), grad), (x, turn(grad)), (turn(x), turn(grad))):
        assert_same_bits(gradients(*other), expected)
    with threads(3), always_spread():
        assert_same_bits(gradients(turn(x), grad), expected)


def test_what_follows_never_changes_a_bit(isa: str) -> None:
    x, weight, bias, _ = inputs_of(6, torch.float32, 1, 9, 400, 4)
    out, _ = F.causal_conv1d(x, weight, bias, "silu")
    for t in (1, 63, 128, 399):
        changed = x.clone()
        changed[..., t:] = float("nan")
        found, _ = F.causal_conv1d(changed, weight, bias, "silu")
        assert_same_bits({"out": found[..., :t]}, {"out": out[..., :t]})
        assert found[..., t].isnan().all()


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_not_finite_stays_in_its_sequence(
    isa: str, strange: float, transposed: bool
) -> None:
    x, weight, bias, _ = inputs_of(7, torch.float32, 1, 37, 30, 4)
    x[..., 10:20] = strange
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if transposed else x
    x.requires_grad_()
    out, state = F.causal_conv1d(x, weight, bias, "silu", cu_seqlens=torch.tensor([0, 10, 20, 28]))
    (grad,) = torch.autograd.grad([out.nan_to_num(0, 0, 0), state], x, [out, state])
    others = torch.ones(30, dtype=torch.bool)
    others[10:20] = False
    assert torch.isfinite(out[..., others]).all()
    assert not torch.isfinite(out[..., ~others]).any()
    assert torch.isfinite(grad[..., others]).all()
    assert torch.isfinite(state[[0, 2]]).all()


@each_dtype
def test_states_are_copied_bit_for_bit(isa: str, dtype: torch.dtype) -> None:
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    integer = torch.int16 if dtype.itemsize == 2 else integer
    top = torch.iinfo(integer).max
    bits = torch.randint(-top, top, (2, 11, 8), dtype=integer)
    state = torch.randint(-top, top, (2, 11, 4), dtype=integer)
    for L in (0, 1, 3, 4, 8):
        x, initial = bits[..., :L].view(dtype), state.view(dtype)
        _, last = F.causal_conv1d(x, torch.zeros(11, 5, dtype=dtype), initial_state=initial)
        expected = torch.cat([state, bits[..., :L]], -1)[..., L:]
        assert torch.equal(last.view(integer), expected)


def test_gradient_of_the_state_alone() -> None:
    x, weight, _, state = inputs_of(8, torch.float64, 2, 3, 2, 5)
    x.requires_grad_()
    state.requires_grad_()
    weight.requires_grad_()
    _, last = F.causal_conv1d(x, weight, initial_state=state)
    grads = torch.autograd.grad(last, (x, state, weight), torch.ones_like(last))
    expected = torch.zeros_like(state)
    expected[..., 2:] = 1
    assert torch.equal(grads[0], torch.ones_like(x))
    assert torch.equal(grads[1], expected)
    assert grads[2].count_nonzero() == 0


def test_as_a_depthwise_convolution(isa: str) -> None:
    """The filters of torch.nn.Conv1d(C, C, W, groups=C, padding=W − 1)."""
    x, weight, bias, _ = inputs_of(9, torch.float64, 2, 6, 50, 4)
    plain = tF.conv1d(x, weight[:, None], bias, padding=3, groups=6)[..., :50]
    torch.testing.assert_close(F.causal_conv1d(x, weight, bias)[0], plain)
    torch.testing.assert_close(F.causal_conv1d(x, weight, bias, "silu")[0], tF.silu(plain))


def test_explain_names_the_kernels() -> None:
    x, weight, bias, _ = inputs_of(10, torch.float32, 1, 40, 2000, 4)
    rows = fulgurite.explain("causal_conv1d", x, weight, bias=bias)
    assert [(row["kernel"], row["tasks"]) for row in rows] == [("causal_conv1d", 4)]
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    rows = fulgurite.explain(
        lambda: F.causal_conv1d(leaves[0], leaves[1], leaves[2])[0].sum().backward()
    )
    assert [row["kernel"] for row in rows] == [
        "causal_conv1d",
        "causal_conv1d_backward",
        "causal_conv1d_sums",
    ]
