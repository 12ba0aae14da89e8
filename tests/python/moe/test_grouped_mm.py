"""The grouped product beyond the generated checks: loads, rows of no expert, whole experts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as tF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import Results, assert_same_bits, forward_backward, threads
from fulgurite.testing import assert_accurate
from fulgurite.testing.backend import always_spread
from fulgurite.testing.references import moe_experts as reference


def inputs_of(
    seed: int, dtype: torch.dtype, *, rows: int, E: int, K: int, N: int, transposed: bool = False
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(E, *((K, N) if transposed else (N, K)), generator=generator)
    tensors = {
        "x": torch.randn(rows, K, generator=generator),
        "weight": weight * K**-0.5,
        "bias": torch.randn(E, N, generator=generator),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def run(
    inputs: dict[str, Tensor],
    offsets: Tensor,
    grad: Tensor,
    *,
    transposed: bool = False,
    exact: bool = False,
) -> Results:
    function = reference.moe_grouped_mm if exact else F.moe_grouped_mm

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (function(x, weight, offsets, bias=bias, transposed=transposed),)

    return forward_backward(call, inputs, (grad,))


@given(
    seed=st.integers(0, 1000),
    counts=st.lists(st.integers(0, 120), min_size=0, max_size=5),
    past=st.integers(0, 3),
    K=st.integers(1, 300),
    N=st.integers(1, 150),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_size_equals_the_reference(
    isa: str,
    seed: int,
    counts: list[int],
    past: int,
    K: int,
    N: int,
    transposed: bool,
    dtype: torch.dtype,
) -> None:
    rows = sum(counts) + past
    inputs = inputs_of(seed, dtype, rows=rows, E=len(counts), K=K, N=N, transposed=transposed)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    grad = torch.randn(rows, N, generator=torch.Generator().manual_seed(seed)).to(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact = run(wide, offsets, grad, transposed=transposed, exact=True)
    naive = run(inputs, offsets, grad, transposed=transposed, exact=True)
    actual = run(inputs, offsets, grad, transposed=transposed)
    size = max([float(x.abs().max()) for x in exact.values() if x.numel()], default=0.0)
    # See test_experts.py: the generated tests judge float32 over seeds.
    assert_accurate(actual, exact, naive, dtype, magnitude=8 * max(4.0, size))
    assert actual["output 0"][rows - past :].eq(0).all()
    assert actual["grad of x"][rows - past :].eq(0).all()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_skewed_load(isa: str, dtype: torch.dtype) -> None:
    # 1,100 rows of one expert: three segments.
    counts, K, N = [0, 1100, 3, 0], 72, 140
    offsets = torch.tensor([0, *counts]).cumsum(0)
    inputs = inputs_of(0, dtype, rows=1110, E=4, K=K, N=N)
    grad = torch.randn(1110, N).to(dtype)
    with threads(1):
        one = run(inputs, offsets, grad)
    with threads(3), always_spread():
        assert_same_bits(run(inputs, offsets, grad), one, "with three threads")
    for name in ("weight", "bias"):
        assert one[f"grad of {name}"][[0, 3]].eq(0).all()
    alone = {**inputs, "x": inputs["x"][[1050]]}
    short = torch.tensor([0, 0, 1, 1, 1])
    for label, tensor in run(alone, short, grad[[1050]]).items():
        if label in ("output 0", "grad of x"):
            assert_same_bits({label: tensor}, {label: one[label][[1050]]}, "alone")


def test_what_no_expert_has_is_not_read(isa: str) -> None:
    inputs = inputs_of(1, torch.float32, rows=6, E=2, K=5, N=4)
    inputs["x"][4:] = float("nan")
    grad = torch.randn(6, 4)
    grad[4:] = float("nan")
    results = run(inputs, torch.tensor([0, 1, 4]), grad)
    assert all(tensor.isfinite().all() for tensor in results.values())
    assert results["output 0"][4:].eq(0).all()
    assert results["grad of x"][4:].eq(0).all()


def test_torchs_grouped_mm_agrees(isa: str) -> None:
    inputs = inputs_of(2, torch.float32, rows=60, E=4, K=32, N=48)
    offsets = torch.tensor([0, 10, 10, 31, 60])
    ends = offsets[1:].int()
    torch.testing.assert_close(
        F.moe_grouped_mm(inputs["x"], inputs["weight"], offsets),
        tF.grouped_mm(inputs["x"], inputs["weight"].mT, offs=ends),
    )


def test_experts_are_their_parts(isa: str) -> None:
    """Route, plan, permute, two grouped products and combine: the experts."""
    T, E, K, H, I = 60, 4, 2, 24, 16
    generator = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, w_in, w_out, b_in, b_out = (
        randn(T, H),
        randn(E, 2 * I, H),
        randn(E, H, I),
        randn(E, 2 * I),
        randn(E, H),
    )
    weights, ids, counts = F.moe_route(randn(T, E), K)
    permutation, inverse, offsets = F.moe_plan(ids, E)
    assert torch.equal(offsets.diff(), counts)
    rows = F.moe_permute(x, permutation, inverse)
    gate, up = F.moe_grouped_mm(rows, w_in, offsets, bias=b_in).chunk(2, 1)
    y = F.moe_grouped_mm(tF.silu(gate) * up, w_out, offsets, bias=b_out)
    whole = F.moe_experts(x, ids, weights, w_in, w_out, b_in=b_in, b_out=b_out)
    torch.testing.assert_close(F.moe_combine(y, inverse, weights), whole)


@pytest.mark.parametrize("mask", [[True, False, False], [False, True, False], [False, False, True]])
def test_gradients_that_nobody_wants_cost_nothing(mask: list[bool]) -> None:
    inputs = inputs_of(4, torch.float32, rows=9, E=2, K=5, N=4)
    offsets, grad = torch.tensor([0, 3, 8]), torch.randn(9, 4)
    together = run(inputs, offsets, grad)
    grads = torch.ops.fulgurite._moe_grouped_mm_backward(
        grad, inputs["x"], inputs["weight"], offsets, transposed=False, output_mask=mask
    )
    for name, tensor, wanted in zip(("x", "weight", "bias"), grads, mask, strict=True):
        if wanted:
            assert_same_bits({name: tensor}, {name: together[f"grad of {name}"]})
        else:
            assert tensor.shape == (0,)


def test_the_backward_checks_offsets_too() -> None:
    x, weight = torch.zeros(3, 2), torch.zeros(1, 2, 2)
    with pytest.raises(RuntimeError, match="rise to at most 3"):
        torch.ops.fulgurite._moe_grouped_mm_backward(
            x, x, weight, torch.tensor([0, 4]), transposed=False, output_mask=[True] * 3
        )
