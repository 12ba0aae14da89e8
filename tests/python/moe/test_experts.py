"""The experts beyond the generated checks: loads, batches, memory, NaN, other formulas.

T tokens, E experts, K experts per token, H width of a token, I hidden width of an expert.
"""

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
from fulgurite.testing.references import moe_experts as reference

NAMES = ("x", "weights", "w_in", "w_out")


def experts_inputs(
    seed: int,
    *,
    T: int,
    E: int,
    H: int,
    I: int,
    K: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "x": randn(T, H),
        "weights": randn(T, K).softmax(1),
        "w_in": randn(E, 2 * I, H) * H**-0.5,
        "w_out": randn(E, H, I) * I**-0.5,
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def run(
    inputs: dict[str, Tensor], ids: Tensor, grad: Tensor, *, save_hidden: bool = True
) -> Results:
    def call(x: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor]:
        return (F.moe_experts(x, ids, weights, w_in, w_out, save_hidden=save_hidden),)

    return forward_backward(call, inputs, (grad,))


def run_reference(inputs: dict[str, Tensor], ids: Tensor, grad: Tensor) -> Results:
    def call(x: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> tuple[Tensor]:
        return (reference.moe_experts(x, ids, weights, w_in, w_out),)

    return forward_backward(call, inputs, (grad,))


@given(
    seed=st.integers(0, 1000),
    T=st.integers(1, 130),
    E=st.integers(1, 9),
    H=st.integers(1, 90),
    I=st.integers(1, 70),
    K=st.integers(1, 4),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_size_equals_the_reference(
    isa: str,
    seed: int,
    T: int,
    E: int,
    H: int,
    I: int,
    K: int,
    dtype: torch.dtype,
) -> None:
    inputs = experts_inputs(seed, T=T, E=E, H=H, I=I, K=K, dtype=dtype)
    ids = torch.randint(-1, E + 1, (T, K), generator=torch.Generator().manual_seed(seed))
    grad = torch.randn(T, H, generator=torch.Generator().manual_seed(seed)).to(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact = run_reference(wide, ids, grad)
    # A search finds sizes where naive is exact by luck, or sums along the lanes of a few products.
    # Wrong terms are far above this; the generated tests judge float32 over seeds.
    size = max(float(x.abs().max()) for x in exact.values() if x.is_floating_point())
    assert_accurate(
        run(inputs, ids, grad),
        exact,
        run_reference(inputs, ids, grad),
        dtype,
        magnitude=8 * max(4.0, size),
    )


def skewed_ids(T: int, E: int, K: int) -> Tensor:
    """Everyone's first choice is expert 0; the last experts get nothing."""
    rest = torch.randint(1, E - 1, (T, K - 1))
    return torch.cat([torch.zeros(T, 1, dtype=torch.int64), rest], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_skewed_load_crosses_segments(isa: str, dtype: torch.dtype) -> None:
    # 1,100 rows of one expert: three segments, and several ranges of tokens in the reductions.
    T, E, K, H, I = 1100, 5, 2, 72, 40
    inputs = experts_inputs(0, T=T, E=E, H=H, I=I, K=K, dtype=dtype)
    ids, grad = skewed_ids(T, E, K), torch.randn(T, H).to(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    actual = run(inputs, ids, grad)
    assert_accurate(actual, run_reference(wide, ids, grad), run_reference(inputs, ids, grad), dtype)
    assert actual["grad of w_in"][-1].eq(0).all()
    assert actual["grad of w_out"][-1].eq(0).all()
    with threads(1):
        one = run(inputs, ids, grad)
    assert_same_bits(one, actual, "with one thread")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_a_token_does_not_depend_on_its_batch(isa: str, dtype: torch.dtype) -> None:
    T, E, K, H, I = 700, 3, 2, 300, 150
    inputs = experts_inputs(1, T=T, E=E, H=H, I=I, K=K, dtype=dtype)
    ids, grad = torch.randint(0, E, (T, K)), torch.randn(T, H).to(dtype)
    together = run(inputs, ids, grad)
    for chosen in ([613], [5, 97, 98, 400, 699], list(range(3, 110))):
        part = {**inputs, "x": inputs["x"][chosen], "weights": inputs["weights"][chosen]}
        alone = run(part, ids[chosen], grad[chosen])
        for label in ("output 0", "grad of x", "grad of weights"):
            assert_same_bits(
                {label: alone[label]}, {label: together[label][chosen]}, f"{len(chosen)}"
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_recomputing_gives_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    inputs = experts_inputs(2, T=50, E=4, H=33, I=65, K=3, dtype=dtype)
    ids, grad = torch.randint(-1, 4, (50, 3)), torch.randn(50, 33).to(dtype)
    assert_same_bits(run(inputs, ids, grad), run(inputs, ids, grad, save_hidden=False))


def test_save_hidden_decides_what_is_kept() -> None:
    inputs = experts_inputs(3, T=64, E=4, H=16, I=128, K=2, dtype=torch.float32)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    x, weights, w_in, w_out = leaves
    given = {tensor.data_ptr() for tensor in leaves}
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in given and tensor.is_floating_point():
            kept.append(tensor.numel())
        return tensor

    ids = torch.randint(0, 4, (64, 2))
    for save_hidden, expected in ((True, [64 * 2 * 2 * 128]), (False, [])):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            F.moe_experts(x, ids, weights, w_in, w_out, save_hidden=save_hidden)
        assert kept == expected


def test_sentinels_contribute_nothing_even_beside_nan(isa: str) -> None:
    inputs = experts_inputs(4, T=6, E=3, H=8, I=8, K=2, dtype=torch.float64)
    ids = torch.tensor([[0, 1], [-1, 3], [2, -5], [1 << 40, 0], [3, 3], [1, 2]])
    sentinel = (ids < 0) | (ids >= 3)
    inputs["weights"][sentinel] = float("nan")
    inputs["x"][[1, 4]] = float("nan")  # tokens without any expert
    grad = torch.randn(6, 8, dtype=torch.float64)
    results = run(inputs, ids, grad)
    assert all(tensor.isfinite().all() for tensor in results.values())
    assert results["output 0"][[1, 4]].eq(0).all()
    assert results["grad of x"][[1, 4]].eq(0).all()
    assert results["grad of weights"][sentinel].eq(0).all()


def test_nan_in_one_token_stays_there(isa: str) -> None:
    inputs = experts_inputs(5, T=40, E=3, H=20, I=12, K=2, dtype=torch.float32)
    inputs["x"][7] = float("nan")
    ids = torch.randint(0, 3, (40, 2))
    results = run(inputs, ids, torch.randn(40, 20))
    others = torch.arange(40) != 7
    for label in ("output 0", "grad of x", "grad of weights"):
        assert results[label][7].isnan().all()
        assert results[label][others].isfinite().all()


def test_grouped_mm_experts_agree(isa: str) -> None:
    """What transformers' grouped experts compute."""
    T, E, K, H, I = 90, 5, 3, 32, 48
    inputs = experts_inputs(8, T=T, E=E, H=H, I=I, K=K, dtype=torch.float32)
    x, weights, w_in, w_out = (inputs[name] for name in NAMES)
    ids = torch.randn(T, E).topk(K).indices
    experts_of, order = ids.flatten().sort(stable=True)
    ends = experts_of.bincount(minlength=E).cumsum(0, dtype=torch.int32)
    gate, up = tF.grouped_mm(x[order // K], w_in.mT, offs=ends).chunk(2, -1)
    y = tF.grouped_mm(tF.silu(gate) * up, w_out.mT, offs=ends) * weights.flatten()[order, None]
    torch.testing.assert_close(
        F.moe_experts(x, ids, weights, w_in, w_out), y[order.argsort()].view(T, K, H).sum(1)
    )


def test_weights_of_any_strides(isa: str) -> None:
    inputs = experts_inputs(9, T=30, E=3, H=20, I=18, K=2, dtype=torch.float32)
    ids, grad = torch.randint(0, 3, (30, 2)), torch.randn(30, 20)
    turned = {
        **inputs,
        "w_in": inputs["w_in"].mT.contiguous().mT,
        "w_out": inputs["w_out"].mT.contiguous().mT,
    }
    assert_same_bits(run(turned, ids, grad), run(inputs, ids, grad))


def test_combine_rounds_once() -> None:
    # 1 + 4 halves of the last place: each rounding to bfloat16 in between would lose them all.
    half_ulp = 2.0**-8
    y = torch.tensor([[1.0]] + [[half_ulp]] * 4).bfloat16()
    inverse = torch.arange(5, dtype=torch.int32)[None]
    assert F.moe_combine(y, inverse).item() == 1.0 + 4 * half_ulp


def test_update_bias_raises_the_version_and_is_bit_equal_to_torch() -> None:
    bias, counts = torch.randn(16), torch.randint(0, 50, (16,))
    expected = bias + 1e-3 * torch.sign(counts.double().mean() - counts).float()
    version = bias._version
    assert F.moe_update_bias_(bias, counts, 1e-3) is bias
    assert bias._version == version + 1
    assert torch.equal(bias, expected)
    assert torch.equal(F.moe_update_bias_(bias.clone(), torch.zeros_like(counts), 1.0), bias)
