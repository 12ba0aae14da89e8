"""The reference itself, against scalar loops, torch's own attention and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from common_checks import DEVICE
from fulgurite.testing.references.attention import PAIRWISE_LIMIT, attention, rope
from fulgurite.testing.samples.attention import qkv

B, HQ, HKV, N, M, D, DV = 2, 2, 1, 4, 5, 3, 2


def tensors(seed: int, **sizes: Any) -> tuple[torch.Tensor, ...]:
    sizes = {"B": B, "Hq": HQ, "Hkv": HKV, "N": N, "M": M, "D": D, "Dv": DV} | sizes
    generator = torch.Generator().manual_seed(seed)
    return qkv(generator, torch.float64, DEVICE, **sizes)


def kept_pair(b: int, h: int, i: int, j: int, arguments: dict[str, Any]) -> bool:
    """The predicate of the contract, one pair at a time."""
    position = i + (M - N if arguments["align"] == "bottom_right" else 0)
    left, right = arguments["window_left"], arguments["window_right"]
    inside = (left < 0 or position - left <= j) and (right < 0 or j <= position + right)
    size, chunk = arguments["block_size"], arguments["chunk_size"]
    layout, mask = arguments["block_layout"], arguments["mask"]
    return bool(
        (mask is None or mask[b % mask.shape[0], 0, i, j])
        and (layout is None or layout[h, i // size, j // size])
        and (not arguments["causal"] or j <= position)
        and (inside or j < arguments["sink_tokens"])
        and (chunk == 0 or math.floor(position / chunk) == math.floor(j / chunk))
        and arguments["bias"][0, h, i, j] != -math.inf
    )


def scalar_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, arguments: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.zeros(B, HQ, N, DV, dtype=torch.float64)
    lse = torch.zeros(B, HQ, N, dtype=torch.float64)
    for b in range(B):
        for h in range(HQ):
            for i in range(N):
                out[b, h, i], lse[b, h, i] = scalar_row(query, key, value, b, h, i, arguments)
    return out, lse


def scalar_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    b: int,
    h: int,
    i: int,
    arguments: dict[str, Any],
) -> tuple[torch.Tensor, float]:
    position = i + (M - N if arguments["align"] == "bottom_right" else 0)
    softcap, out, total = arguments["softcap"], torch.zeros(DV, dtype=torch.float64), 0.0
    for j in range(M):
        if not kept_pair(b, h, i, j, arguments):
            continue
        s = arguments["scale"] * sum(
            float(query[b, h, i, d]) * float(key[b, h // (HQ // HKV), j, d]) for d in range(D)
        )
        if softcap > 0:
            s = softcap * math.tanh(s / softcap)
        s += float(arguments["bias"][0, h, i, j])
        s -= float(arguments["alibi_slopes"][h]) * abs(position - j)
        if arguments["score"] == "softmax":
            weight = math.exp(s)
        elif arguments["score"] == "relu2":
            weight = max(s, 0.0) ** 2
        else:
            weight = 0.5 * (1 + math.erf((s - math.sqrt(0.5)) * math.sqrt(2 * math.pi)))
        total += weight
        out += weight * value[b, h // (HQ // HKV), j]
    if arguments["score"] != "softmax":
        return arguments["score_scale"] * out, 0.0
    if arguments["sink"] is not None:
        total += math.exp(float(arguments["sink"][h]))
    return (out / total, math.log(total)) if total > 0 else (out, -math.inf)


@st.composite
def whole_contract(draw: st.DrawFn) -> dict[str, Any]:
    """Any combination of what attention's contract knows, dropout aside."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    score = draw(st.sampled_from(["softmax", "softmax", "relu2", "laplace"]))
    size = draw(st.integers(1, 3))
    blocks = (HQ, -(-N // size), -(-M // size))
    bias = torch.randn(1, HQ, N, M, generator=generator, dtype=torch.float64)
    bias[torch.rand(bias.shape, generator=generator) < 0.1] = -math.inf
    return {
        "bias": bias,
        "mask": draw(st.sampled_from([None, torch.rand(1, 1, N, M, generator=generator) < 0.7])),
        "sink": draw(st.sampled_from([None, torch.randn(HQ, generator=generator).double()]))
        if score == "softmax"
        else None,
        "alibi_slopes": torch.rand(HQ, generator=generator).double(),
        "block_layout": draw(
            st.sampled_from([None, torch.rand(blocks, generator=generator) < 0.7])
        ),
        "block_size": size,
        "scale": draw(st.sampled_from([0.3, 1.0])),
        "causal": draw(st.booleans()),
        "align": draw(st.sampled_from(["bottom_right", "top_left"])),
        "window_left": draw(st.integers(-1, 3)),
        "window_right": draw(st.integers(-1, 3)),
        "sink_tokens": draw(st.integers(0, 2)),
        "chunk_size": draw(st.integers(0, 3)),
        "softcap": draw(st.sampled_from([0.0, 2.0])),
        "score": score,
        "score_scale": 1.0 if score == "softmax" else 0.25,
    }


@given(arguments=whole_contract(), seed=st.integers(0, 1000))
def test_reference_equals_scalar_loops(arguments: dict[str, Any], seed: int) -> None:
    query, key, value = tensors(seed)
    actual = attention(query, key, value, **arguments)
    for one, other in zip(actual, scalar_attention(query, key, value, arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [8, 160])  # each pair alone, and as matrices
def test_reference_equals_torch(size: int) -> None:
    query, key, value = tensors(0, N=size, M=size, D=16, Dv=16, Hq=4, Hkv=2)
    assert (query.shape[:3].numel() * size * 16 > PAIRWISE_LIMIT) == (size == 160)
    mask = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[..., 0] = True  # torch gives NaN for an empty row
    for ours, theirs in (
        ({"causal": True}, {"is_causal": True}),
        ({"mask": mask}, {"attn_mask": mask}),
    ):
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        out, _ = attention(*leaves, **ours)
        want = scaled_dot_product_attention(*leaves, enable_gqa=True, **theirs)
        torch.testing.assert_close(out, want)
        noise = torch.randn_like(out)
        grads = torch.autograd.grad(out, leaves, noise)
        for grad, other in zip(grads, torch.autograd.grad(want, leaves, noise), strict=True):
            torch.testing.assert_close(grad, other)


@given(arguments=whole_contract(), seed=st.integers(0, 1000))
def test_gradients_of_the_reference(arguments: dict[str, Any], seed: int) -> None:
    """Every gradient, that of lse included, which counts only where it is finite."""
    names = [name for name in ("bias", "sink", "alibi_slopes") if arguments[name] is not None]
    rest = {name: value for name, value in arguments.items() if name not in names}
    hidden = arguments["bias"] == -math.inf

    def function(*leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = dict(zip(names, leaves[3:], strict=True))
        given["bias"] = given["bias"].masked_fill(hidden, -math.inf)
        out, lse = attention(*leaves[:3], **given, **rest)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    leaves = [
        *tensors(seed),
        *(arguments[name].masked_fill(torch.isinf(arguments[name]), 0.0) for name in names),
    ]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_periodic_bias_and_mask() -> None:
    """A batch B' that divides B: sample b takes b mod B'."""
    query, key, value = tensors(0, B=6)
    bias = torch.randn(2, 1, N, M, dtype=torch.float64)
    mask = torch.rand(3, 1, N, M) < 0.7
    out, lse = attention(query, key, value, bias=bias, mask=mask)
    for b in range(6):
        one = [tensor[b : b + 1] for tensor in (query, key, value)]
        alone = attention(*one, bias=bias[b % 2][None], mask=mask[b % 3][None])
        torch.testing.assert_close(out[b : b + 1], alone[0])
        torch.testing.assert_close(lse[b : b + 1], alone[1])


def test_hidden_numbers_stay_hidden_in_the_reference() -> None:
    """Query 3 and key 3 see only each other: a NaN in that key reaches nothing else."""
    query, key, value = tensors(0, B=1, Hq=1, N=M)
    key[0, 0, 3] = math.nan
    mask = torch.ones(M, M, dtype=torch.bool)
    mask[3, :] = mask[:, 3] = False
    mask[3, 3] = True
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    out, lse = attention(*leaves, mask=mask)
    grads = torch.autograd.grad([out.sum(), lse.sum()], leaves)
    for result in (out, lse[..., None], *grads):
        broken = result[0, 0].isnan().any(-1)
        assert broken.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_is_a_complex_product(interleaved: bool) -> None:
    x = torch.randn(3, 5, 9, dtype=torch.float64)
    angle = torch.randn(5, 4, dtype=torch.float64)
    pairs = x[..., :8].unflatten(-1, (4, 2) if interleaved else (2, 4))
    pairs = pairs if interleaved else pairs.mT
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)
    want = torch.view_as_real(turned)
    want = torch.cat([(want if interleaved else want.mT).flatten(-2), x[..., 8:]], dim=-1)
    out = rope(x, angle.cos(), angle.sin(), interleaved=interleaved)
    torch.testing.assert_close(out, want)
    back = rope(out, angle.cos(), angle.sin(), interleaved=interleaved, conjugate=True)
    torch.testing.assert_close(back, x)
