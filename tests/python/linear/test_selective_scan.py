"""The selective scan beyond the generated checks: bits of pieces and packs, strong decays."""

from __future__ import annotations

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
from fulgurite.testing.references import linear as reference
from fulgurite.testing.registry import ALL_DTYPES
from linear.packs import assert_packed_as_alone

SCAN = OPERATORS["selective_scan"]
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: str(d)[6:])
Inputs = dict[str, Tensor]
ALONG_POSITIONS = ("u", "delta", "B", "C", "z")


def inputs_of(seed: int, dtype: torch.dtype, B: int, D: int, L: int, N: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {
        "u": normal(B, D, L),
        "delta": normal(B, D, L) - 1,
        "A": -normal(D, N).exp(),
        "B": normal(B, N, L),
        "C": normal(B, N, L),
        "D": normal(D),
        "z": normal(B, D, L),
        "delta_bias": normal(D) / 4,
    }
    return {k: t.to(dtype) for k, t in inputs.items()} | {"initial_state": normal(B, D, N).to(wide)}


def scan(inputs: Inputs, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return F.selective_scan(**inputs, delta_softplus=True, **kwargs)


def cut(inputs: Inputs, span: slice, **others: Tensor) -> Inputs:
    return {k: t[..., span] if k in ALONG_POSITIONS else t for k, t in inputs.items()} | others


def turned(inputs: Inputs) -> Inputs:
    """The same numbers with channels, or states, next to each other in memory."""
    return {
        k: t.transpose(1, 2).contiguous().transpose(1, 2) if k in ALONG_POSITIONS else t
        for k, t in inputs.items()
    }


def gradients(inputs: Inputs, grads: tuple[Tensor, Tensor], **kwargs: Any) -> Inputs:
    leaves = {k: t.detach().requires_grad_() for k, t in inputs.items()}
    found = torch.autograd.grad(scan(leaves, **kwargs), list(leaves.values()), grads)
    return {f"grad of {k}": g for k, g in zip(leaves, found, strict=True)}


@given(
    seed=st.integers(0, 1000),
    B=st.integers(1, 2),
    D=st.integers(1, 70),
    L=st.integers(0, 70),
    N=st.integers(1, 9),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_any_size_equals_the_reference(
    isa: str, seed: int, B: int, D: int, L: int, N: int, transposed: bool, dtype: torch.dtype
) -> None:
    inputs = inputs_of(seed, dtype, B, D, L, N)
    inputs = turned(inputs) if transposed else inputs
    args = tuple(inputs.pop(name) for name in ("u", "delta", "A", "B", "C"))
    sample = Sample("", args, {**inputs, "delta_softplus": True})
    assert_equals_reference(SCAN, sample, dtype, magnitude=1.0)


@each_dtype
def test_pieces_have_the_bits_of_the_whole(isa: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(0, dtype, 2, 19, 300, 5)
    out, state = scan(inputs)
    for cuts in ([256, 44], [1, 2, 297], [*[1] * 40, 260], [0, 33, 267]):
        outs, last, begin = [], inputs["initial_state"], 0
        for length in cuts:
            span = slice(begin, begin + length)
            piece, last = scan(cut(inputs, span, initial_state=last))
            outs.append(piece)
            begin += length
        assert_same_bits({"out": torch.cat(outs, -1), "state": last}, {"out": out, "state": state})


@each_dtype
def test_packed_sequences_have_the_bits_that_they_have_alone(isa: str, dtype: torch.dtype) -> None:
    lengths, D, N = [5, 0, 1, 70, 0, 33], 21, 4
    total = sum(lengths)
    inputs = inputs_of(1, dtype, 1, D, total + 3, N)
    inputs["initial_state"] = inputs_of(2, dtype, len(lengths), D, 1, N)["initial_state"]
    grads = torch.randn_like(inputs["u"]), torch.randn_like(inputs["initial_state"])
    own = ("u", "delta", "z", "B", "C", "initial_state")

    def run(span: slice, which: slice, **kwargs: Any) -> Inputs:
        call = cut(inputs, span, initial_state=inputs["initial_state"][which])
        out, state = scan(call, **kwargs)
        found = gradients(call, (grads[0][..., span], grads[1][which]), **kwargs)
        return {"out": out, "state": state} | {k: found[f"grad of {k}"] for k in own}

    assert_packed_as_alone(lengths, run)


@each_dtype
def test_layouts_batches_and_threads_have_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(3, dtype, 2, 75, 50, 4)
    grads = torch.randn_like(inputs["u"]), torch.randn_like(inputs["initial_state"])
    expected = gradients(inputs, grads)
    with threads(3), always_spread():
        other = turned(inputs)
        assert_same_bits(gradients(other, (turned({"u": grads[0]})["u"], grads[1])), expected)
    out, state = scan(inputs)
    shared = ("A", "D", "delta_bias")
    one = scan({k: t if k in shared else t[1:] for k, t in turned(inputs).items()})
    assert_same_bits({"out": one[0], "state": one[1]}, {"out": out[1:], "state": state[1:]})


def test_what_is_recorded_has_the_bits_of_what_is_not(isa: str) -> None:
    inputs = inputs_of(4, torch.float32, 1, 7, 90, 4)
    recorded = scan({k: t.requires_grad_() for k, t in inputs.items()})
    with torch.no_grad():
        plain = scan(inputs)
    assert_same_bits(dict(enumerate(recorded)), dict(enumerate(plain)))


def test_what_follows_never_changes_a_bit(isa: str) -> None:
    inputs = inputs_of(5, torch.float32, 1, 9, 100, 4)
    out, _ = scan(inputs)
    for t in (1, 31, 32, 99):
        changed = dict(inputs)
        for name in ALONG_POSITIONS:
            changed[name] = inputs[name].clone()
            changed[name][..., t:] = float("nan")
        found, _ = scan(changed)
        assert_same_bits({"out": found[..., :t]}, {"out": out[..., :t]})
        assert found[..., t].isnan().all()


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sequence(isa: str, strange: float) -> None:
    inputs = inputs_of(6, torch.float32, 1, 5, 30, 3)
    inputs["initial_state"] = torch.zeros(3, 5, 3)
    inputs["u"][..., 10:20] = strange
    inputs["u"].requires_grad_()
    out, state = scan(inputs, cu_seqlens=torch.tensor([0, 10, 20, 28]))
    (grad,) = torch.autograd.grad([out, state], inputs["u"], [out.detach(), state.detach()])
    others = torch.ones(30, dtype=torch.bool)
    others[10:20] = False
    assert torch.isfinite(out[..., others]).all()
    assert not torch.isfinite(out[..., ~others]).any()
    assert torch.isfinite(grad[..., others]).all()
    assert torch.isfinite(state[[0, 2]]).all()


@pytest.mark.parametrize("rate", [-1e-3, -8.0, -30.0, -1000.0, -float("inf")])
def test_decays_of_any_strength(isa: str, rate: float) -> None:
    """Against the recurrence in float32: within 8 times its error and 8 unit roundoffs."""
    inputs = inputs_of(7, torch.float32, 1, 6, 90, 3)
    inputs["A"] = torch.full_like(inputs["A"], rate)
    grads = torch.randn_like(inputs["u"]), torch.randn_like(inputs["initial_state"])
    asked = [k for k in inputs if k != "A" or rate > -float("inf")]
    asked = [k for k in asked if rate > -float("inf") or k not in ("delta", "delta_bias")]

    def run(function: Any, dtype: torch.dtype) -> Inputs:
        leaves = {k: t.to(dtype).requires_grad_(k in asked) for k, t in inputs.items()}
        outs = function(**leaves, delta_softplus=True)
        found = torch.autograd.grad(outs, [leaves[k] for k in asked], [g.to(dtype) for g in grads])
        return {"out": outs[0], "state": outs[1]} | dict(zip(asked, found, strict=True))

    def plain(u: Any, delta: Any, A: Any, B: Any, C: Any, **options: Any) -> Any:
        return reference.selective_scan(u, delta, A, B, C, **options)

    exact, naive = run(plain, torch.float64), run(plain, torch.float32)
    for name, found in run(F.selective_scan, torch.float32).items():
        error = (found.double() - exact[name]).abs().max()
        allowed = 8 * (naive[name].double() - exact[name]).abs().max()
        assert error <= allowed + 8 * 2**-24 * exact[name].abs().max(), name


def test_gradient_of_the_state_alone() -> None:
    inputs = inputs_of(8, torch.float64, 2, 3, 40, 2)

    def states(*tensors: Tensor) -> Tensor:
        return scan(dict(zip(inputs, tensors, strict=True)))[1]

    leaves = [t.requires_grad_() for t in inputs.values()]
    assert torch.autograd.gradcheck(states, leaves, fast_mode=True)


def test_explain_names_the_kernels() -> None:
    inputs = inputs_of(9, torch.float32, 1, 100, 300, 4)
    rows = fulgurite.explain(lambda: scan(inputs))
    assert [(row["kernel"], row["tasks"]) for row in rows] == [("selective_scan", 4)]
    leaves = {k: t.requires_grad_() for k, t in inputs.items()}
    rows = fulgurite.explain(lambda: scan(leaves)[0].sum().backward())
    assert [(row["kernel"], row["tasks"]) for row in rows] == [
        ("selective_scan", 4),
        ("selective_scan_backward", 2),
        ("selective_scan_columns", 10),
        ("selective_scan_channels", 2),
    ]
