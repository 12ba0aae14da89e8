"""Linear attention beyond the generated checks: chunk edges, strong decays, bits of all cuts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fulgurite
import fulgurite.nn.functional as F
from common_checks import (
    FULL,
    assert_equals_reference,
    assert_same_bits,
    reference_and_naive,
    threads,
)
from fulgurite.testing import OPERATORS, Sample, evaluate
from fulgurite.testing.backend import always_spread
from fulgurite.testing.references import linear_attention as reference
from fulgurite.testing.registry import ALL_DTYPES
from linear.packs import assert_packed_as_alone

ATTENTION = OPERATORS["linear_attention"]
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: str(d)[6:])
each_decay = pytest.mark.parametrize("decay", [0, 1, 3, 4], ids=lambda n: f"decay{n}")
Inputs = dict[str, Tensor]
ALONG_POSITIONS = ("query", "key", "value", "log_decay")
# What a call may be besides its decay.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bonus": {},
    "normalized": {"normalize": True, "eps": 0.5},
    "exclusive": {"exclusive_chunk": 12},
    "exclusive_long": {"exclusive_chunk": 100},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def inputs_of(
    seed: int,
    dtype: torch.dtype,
    B: int,
    H: int,
    N: int,
    D: int,
    Dv: int,
    *,
    Hk: int | None = None,
    decay: int = 3,
    kind: str = "plain",
) -> Inputs:
    """``decay`` is the number of log_decay's dimensions."""
    generator = torch.Generator().manual_seed(seed)
    Hk = H if Hk is None else Hk
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = {
        "query": normal(B, Hk, N, D),
        "key": normal(B, Hk, N, D) * D**-0.5,
        "value": normal(B, H, N, Dv),
    }
    if kind == "normalized":
        inputs |= {k: inputs[k].abs() for k in ("query", "key")}
    if decay:
        shape = {1: (H,), 3: (B, H, N), 4: (B, H, N, D)}[decay]
        inputs["log_decay"] = -normal(*shape).abs() / 4
    if kind == "bonus":
        inputs["bonus"] = normal(H, D)
    inputs = {k: t.to(dtype) for k, t in inputs.items()}
    inputs["initial_state"] = normal(B, H, D, Dv).to(wide)
    if kind == "normalized":
        inputs["initial_norm"] = normal(B, H, D).abs().to(wide)
    return inputs


def attend(inputs: Inputs, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    options: dict[str, Any] = inputs | kwargs
    return F.linear_attention(**options)


def is_along(name: str, tensor: Tensor) -> bool:
    return name in ALONG_POSITIONS and tensor.dim() > 1


def cut(inputs: Inputs, span: slice, **others: Tensor) -> Inputs:
    return {k: t[:, :, span] if is_along(k, t) else t for k, t in inputs.items()} | others


def cotangents(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(99)
    state = inputs["initial_state"]
    shape = (*state.shape[:2], state.shape[2])
    return (
        torch.randn(inputs["value"].shape, generator=generator).to(inputs["value"].dtype),
        torch.randn(state.shape, generator=generator).to(state.dtype),
        torch.randn(shape, generator=generator).to(state.dtype),
    )


def run(inputs: Inputs, grads: tuple[Tensor, ...] | None = None, **kwargs: Any) -> Inputs:
    """Results and all gradients."""
    leaves = {k: t.detach().clone().requires_grad_() for k, t in inputs.items()}
    results = attend(leaves, **kwargs)
    grads = cotangents(inputs) if grads is None else grads
    pairs = [(r, g) for r, g in zip(results, grads, strict=True) if r.requires_grad]
    found = torch.autograd.grad(
        [r for r, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True
    )
    named = dict(zip(("out", "state", "norm"), results, strict=True))
    return {k: t.detach() for k, t in named.items()} | {
        f"grad of {k}": g for k, g in zip(leaves, found, strict=True) if g is not None
    }


def assert_within_bound(
    actual: Inputs, exact: Inputs, naive: Inputs, magnitude: float = 0.0
) -> None:
    """In float32: 8 times the error of the recurrence and 8 unit roundoffs of the largest entry."""
    for name, found in actual.items():
        if found.numel() == 0:
            continue
        error = (found.double() - exact[name]).abs().max()
        allowed = 8 * (naive[name].double() - exact[name]).abs().max()
        largest = max(float(exact[name].abs().max()), magnitude)
        assert error <= allowed + 8 * 2**-24 * largest, f"{name}: {error}"


def assert_accurate(sample: Sample, dtype: torch.dtype, magnitude: float) -> None:
    """One call against the reference."""
    if dtype == torch.float32:
        actual = evaluate(ATTENTION.op, ATTENTION, sample, cotangent_dtype=dtype)
        assert_within_bound(actual, *reference_and_naive(ATTENTION, sample, dtype), magnitude)
    else:
        assert_equals_reference(ATTENTION, sample, dtype, magnitude=magnitude)


def in_pairs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    initial_state: Tensor,
    log_decay: Tensor | None = None,
) -> Tensor:
    """out by all pairs of positions, in float64: for weak decays, as e^(G_i − G_j)."""
    r = value.shape[1] // query.shape[1]
    q, k = query.repeat_interleave(r, 1), key.repeat_interleave(r, 1)
    N = q.shape[2]
    g = torch.zeros(1, dtype=q.dtype) if log_decay is None else log_decay
    g = g.view(1, -1, 1, 1) if g.dim() == 1 else g[..., None] if g.dim() == 3 else g
    G = g.expand_as(q).cumsum(2)
    mask = torch.ones(N, N, dtype=torch.bool).tril()[..., None]
    P = (G[:, :, :, None] - G[:, :, None]).masked_fill(~mask, -torch.inf).exp()
    scores = torch.einsum("bhid,bhjd,bhijd->bhij", q, k, P)
    return scores @ value + (q * G.exp()) @ initial_state


EDGES = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257]


@each_decay
def test_edges_of_chunks_and_blocks(isa: str, decay: int) -> None:
    """Forward and every gradient, against all pairs in float64."""
    for N in EDGES if FULL else EDGES[3::3]:
        inputs = inputs_of(N, torch.float64, 1, 2, N, 4, 5, Hk=1, decay=decay)
        leaves = {k: t.requires_grad_() for k, t in inputs.items()}
        outs = attend(leaves)[0], in_pairs(**leaves)
        grad = cotangents(inputs)[0]
        ours, exact = (torch.autograd.grad(out, list(leaves.values()), grad) for out in outs)
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-9, atol=1e-9)
        for name, found, expected in zip(leaves, ours, exact, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8, msg=f"{N} {name}")


@given(
    seed=st.integers(0, 1000),
    group=st.integers(1, 6),
    Hk=st.integers(1, 2),
    N=st.integers(0, 40),
    D=st.integers(1, 70),
    Dv=st.integers(1, 70),
    decay=st.sampled_from([0, 1, 3, 4]),
    kind=st.sampled_from(list(KINDS)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_any_size_equals_the_reference(
    isa: str,
    seed: int,
    group: int,
    Hk: int,
    N: int,
    D: int,
    Dv: int,
    decay: int,
    kind: str,
    dtype: torch.dtype,
) -> None:
    inputs = inputs_of(seed, dtype, 1, group * Hk, N, D, Dv, Hk=Hk, decay=decay, kind=kind)
    args = tuple(inputs.pop(name) for name in ("query", "key", "value"))
    assert_accurate(Sample("", args, inputs | KINDS[kind]), dtype, max(D, Dv) ** 0.5)


@pytest.mark.skipif(not FULL, reason="the widths of published models, minutes of them")
@each_dtype
@each_decay
@pytest.mark.parametrize(
    ("D", "Dv"), [(1, 8), (7, 40), (59, 64), (100, 128), (256, 512), (266, 64)]
)
def test_widths_of_models(isa: str, dtype: torch.dtype, decay: int, D: int, Dv: int) -> None:
    inputs = inputs_of(D, dtype, 1, 2, 130, D, Dv, Hk=1, decay=decay)
    args = tuple(inputs.pop(name) for name in ("query", "key", "value"))
    assert_accurate(Sample("", args, inputs), dtype, max(D, Dv) ** 0.5)


@each_dtype
@each_decay
def test_few_positions_have_the_bits_of_many(isa: str, dtype: torch.dtype, decay: int) -> None:
    """Read and written in place, the state is the one that more positions would pack."""
    inputs = inputs_of(14, dtype, 2, 2, 70, 19, 64, Hk=1, decay=decay)
    out = attend(inputs)[0]
    for N in (1, 2, 4, 7, 12):
        few = attend(cut(inputs, slice(0, N)))
        assert_same_bits({"out": few[0]}, {"out": out[:, :, :N]}, f"{N}")
        # With its columns apart in memory it is packed.
        state = inputs["initial_state"].mT.contiguous().mT
        packed = attend(cut(inputs, slice(0, N), initial_state=state))
        assert_same_bits(dict(enumerate(packed)), dict(enumerate(few)), f"{N}")


@each_dtype
@each_kind
def test_pieces_have_the_bits_of_the_whole(isa: str, dtype: torch.dtype, kind: str) -> None:
    """Cut at multiples of 256 which, with exclusive chunks, are multiples of those too."""
    options = dict(KINDS[kind])
    if "exclusive_chunk" in options:
        options["exclusive_chunk"] = 32 if kind == "exclusive" else 128
    for decay in (3, 4):
        inputs = inputs_of(0, dtype, 1, 2, 550, 9, 18, Hk=1, decay=decay, kind=kind)
        whole = attend(inputs, **options)
        for cuts in ([256, 294], [512, 38], [256, 256, 38]):
            outs, begin = [], 0
            state = {k: t for k, t in inputs.items() if k.startswith("initial")}
            for length in cuts:
                piece = cut(inputs, slice(begin, begin + length), **state)
                out, last, norm = attend(piece, **options)
                outs.append(out)
                state["initial_state"] = last
                if kind == "normalized":
                    state["initial_norm"] = norm
                begin += length
            found = {"out": torch.cat(outs, 2), "state": last, "norm": norm}
            assert_same_bits(found, dict(zip(found, whole, strict=True)), f"{cuts}")


@each_kind
@each_decay
def test_single_steps_equal_the_whole(isa: str, kind: str, decay: int) -> None:
    if "exclusive_chunk" in KINDS[kind]:
        pytest.skip("a piece begins at the start of an exclusive chunk")
    inputs = inputs_of(1, torch.float64, 2, 2, 21, 5, 6, decay=decay, kind=kind)
    whole, outs = attend(inputs, **KINDS[kind]), []
    state = {k: t for k, t in inputs.items() if k.startswith("initial")}
    for t in range(21):
        out, last, norm = attend(cut(inputs, slice(t, t + 1), **state), **KINDS[kind])
        outs.append(out)
        state["initial_state"] = last
        if kind == "normalized":
            state["initial_norm"] = norm
    for found, expected in zip((torch.cat(outs, 2), last, norm), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@each_kind
@pytest.mark.parametrize("decay", [3, 4])
@each_dtype
def test_packed_sequences_have_the_bits_that_they_have_alone(
    isa: str, dtype: torch.dtype, decay: int, kind: str
) -> None:
    lengths = [5, 0, 1, 130, 0, 33]
    total = sum(lengths)
    inputs = inputs_of(1, dtype, 1, 2, total + 3, 9, 10, Hk=1, decay=decay, kind=kind)
    states = inputs_of(2, dtype, len(lengths), 2, 1, 9, 10, kind=kind)
    inputs |= {k: t for k, t in states.items() if k.startswith("initial")}
    grads = cotangents(inputs)

    def call(span: slice, which: slice, **kwargs: Any) -> Inputs:
        own = {k: t[which] for k, t in inputs.items() if k.startswith("initial")}
        some = grads[0][:, :, span], grads[1][which], grads[2][which]
        found = run(cut(inputs, span, **own), some, **KINDS[kind], **kwargs)
        if kind == "bonus":
            del found["grad of bonus"]  # a sum over the sequences
        # Positions last, and states by their names.
        named = {k.replace("norm", "norm state"): t for k, t in found.items()}
        return {k: t if "state" in k or t.dim() == 3 else t.mT for k, t in named.items()}

    assert_packed_as_alone(lengths, call)


@each_kind
@each_decay
def test_threads_batch_and_heads_do_not_show_in_the_bits(isa: str, decay: int, kind: str) -> None:
    """A head alone is dealt out in parts of its columns and features, many are not."""
    inputs = inputs_of(3, torch.float32, 4, 4, 150, 70, 68, decay=decay, kind=kind)
    everything = run(inputs, **KINDS[kind])
    with threads(3), always_spread():
        assert_same_bits(run(inputs, **KINDS[kind]), everything)
    grads = cotangents(inputs)
    heads = {"bonus", "log_decay"} if decay == 1 else {"bonus"}
    one = {k: t[:1] if k in heads else t[2:3, :1] for k, t in inputs.items()}
    alone = run(one, tuple(g[2:3, :1] for g in grads), **KINDS[kind])
    for name, found in alone.items():
        if name.removeprefix("grad of ") not in heads:  # a sum over the batch
            assert_same_bits({name: found}, {name: everything[name][2:3, :1]})


def test_what_is_recorded_has_the_bits_of_what_is_not(isa: str) -> None:
    for kind in KINDS:
        inputs = inputs_of(4, torch.float32, 1, 3, 270, 7, 9, kind=kind)
        recorded = attend({k: t.requires_grad_() for k, t in inputs.items()}, **KINDS[kind])
        with torch.no_grad():
            plain = attend(inputs, **KINDS[kind])
        assert_same_bits(dict(enumerate(recorded)), dict(enumerate(plain)))


@each_kind
@each_decay
def test_what_follows_never_changes_a_bit(isa: str, decay: int, kind: str) -> None:
    inputs = inputs_of(5, torch.float32, 1, 2, 140, 9, 20, decay=decay, kind=kind)
    out = attend(inputs, **KINDS[kind])[0]
    for t in (1, 15, 16, 63, 64, 67, 139):
        changed = dict(inputs)
        for name in ALONG_POSITIONS:
            if name in inputs and is_along(name, inputs[name]):
                changed[name] = inputs[name].clone()
                changed[name][:, :, t:] = float("nan")
        found = attend(changed, **KINDS[kind])[0]
        assert_same_bits({"out": found[:, :, :t]}, {"out": out[:, :, :t]}, f"{t}")
        assert found[:, :, t].isnan().all()
        shorter = attend(cut(inputs, slice(0, t)), **KINDS[kind])[0]
        assert_same_bits({"out": shorter}, {"out": out[:, :, :t]}, f"{t} positions")


@each_kind
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sequence(isa: str, strange: float, kind: str) -> None:
    for decay in (3, 4):
        inputs = inputs_of(6, torch.float32, 1, 2, 30, 5, 6, decay=decay, kind=kind)
        states = inputs_of(7, torch.float32, 3, 2, 1, 5, 6, kind=kind)
        inputs |= {k: t for k, t in states.items() if k.startswith("initial")}
        for name in ("query", "key", "value"):
            inputs[name][:, :, 10:20] = strange
        found = run(inputs, cu_seqlens=torch.tensor([0, 10, 20, 28]), **KINDS[kind])
        others = torch.ones(30, dtype=torch.bool)
        others[10:20] = False
        for name in ("out", *(f"grad of {k}" for k in ALONG_POSITIONS)):
            assert torch.isfinite(found[name][:, :, others]).all(), name
        assert not torch.isfinite(found["out"][:, :, ~others]).any()
        assert torch.isfinite(found["state"][[0, 2]]).all()


def test_a_strange_value_reaches_only_what_reads_it(isa: str) -> None:
    """Gradients of queries before a key that is NaN, and of keys behind a query that is."""
    for decay in (0, 3, 4):
        inputs = inputs_of(8, torch.float32, 1, 1, 12, 4, 5, decay=decay)
        inputs["key"][:, :, 7] = float("nan")
        found = run(inputs)
        assert torch.isfinite(found["grad of query"][:, :, :7]).all()
        assert found["grad of query"][:, :, 7:].isnan().all()
        inputs = inputs_of(8, torch.float32, 1, 1, 12, 4, 5, decay=decay)
        inputs["query"][:, :, 4] = float("nan")
        found = run(inputs)
        assert torch.isfinite(found["grad of key"][:, :, 5:]).all()
        assert torch.isfinite(found["grad of value"][:, :, 5:]).all()
        assert found["grad of value"][:, :, :5].isnan().all()


STRENGTHS: dict[str, tuple[float, float]] = {  # of most positions, and of a fifth of them
    "weak": (-0.1, -0.1),
    "fifth_30": (-0.1, -30.0),
    "fifth_1000": (-0.1, -1000.0),
    "all_8": (-8.0, -8.0),
    "cut_off": (-0.1, -torch.inf),
}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("decay", [3, 4])
@pytest.mark.parametrize("kind", ["plain", "bonus", "normalized"])
def test_decays_of_any_strength(isa: str, strength: str, decay: int, kind: str) -> None:
    """Against the recurrence in float32: within 8 times its error and 8 unit roundoffs."""
    inputs = inputs_of(9, torch.float32, 1, 2, 140 if FULL else 90, 6, 5, decay=decay, kind=kind)
    most, fifth = STRENGTHS[strength]
    noise = torch.rand(inputs["log_decay"].shape, generator=torch.Generator().manual_seed(5))
    inputs["log_decay"] = torch.where(noise < 0.2, fifth, most * (0.5 + noise))
    grads = cotangents(inputs)

    def calls(function: Any, dtype: torch.dtype) -> Inputs:
        leaves = {k: t.to(dtype).requires_grad_() for k, t in inputs.items()}
        outs = function(**leaves, **KINDS[kind])
        pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in pairs], list(leaves.values()), [g.to(dtype) for _, g in pairs]
        )
        return {"out": outs[0], "state": outs[1]} | dict(zip(leaves, found, strict=True))

    plain = reference.linear_attention
    exact, naive = calls(plain, torch.float64), calls(plain, torch.float32)
    results = calls(F.linear_attention, torch.float32)
    if fifth == -torch.inf:
        assert (results["log_decay"][inputs["log_decay"] == -torch.inf] == 0).all()
    assert_within_bound(results, exact, naive)


def test_a_cut_off_past_contributes_exactly_nothing(isa: str) -> None:
    for decay in (3, 4):
        inputs = inputs_of(10, torch.float32, 1, 2, 30, 5, 6, decay=decay)
        inputs["log_decay"][:, :, 11] = -torch.inf
        whole = attend(inputs)
        later = cut(inputs, slice(11, 30), initial_state=torch.zeros_like(inputs["initial_state"]))
        torch.testing.assert_close(attend(later)[0], whole[0][:, :, 11:])
        found = run(inputs, (torch.zeros_like(whole[0]), *cotangents(inputs)[1:]))
        for name in ("key", "value"):
            assert (found[f"grad of {name}"][:, :, :11] == 0).all()
        assert (found["grad of initial_state"] == 0).all()


@each_kind
@pytest.mark.parametrize("decay", [3, 4])
def test_gradients_of_states_alone(decay: int, kind: str) -> None:
    inputs = inputs_of(11, torch.float64, 2, 2, 20, 3, 4, decay=decay, kind=kind)

    def states(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = attend(dict(zip(inputs, tensors, strict=True)), **KINDS[kind])[1:]
        return results if kind == "normalized" else results[:1]

    leaves = [t.requires_grad_() for t in inputs.values()]
    assert torch.autograd.gradcheck(states, leaves, fast_mode=True)


def test_a_norm_without_normalize_is_zeros_and_is_not_read() -> None:
    inputs = inputs_of(12, torch.float32, 1, 2, 5, 3, 4)
    plain = attend(inputs)
    inputs["initial_norm"] = torch.full((1, 2, 3), float("nan")).requires_grad_()
    out, state, norm = attend(inputs)
    assert_same_bits({"out": out, "state": state}, {"out": plain[0], "state": plain[1]})
    assert (norm == 0).all()
    (grad,) = torch.autograd.grad(out.sum(), inputs["initial_norm"])
    assert (grad == 0).all()


def test_explain_names_the_kernels() -> None:
    inputs = inputs_of(13, torch.float32, 2, 4, 70, 64, 64)
    rows = fulgurite.explain(lambda: attend(inputs))
    assert [(row["kernel"], row["tasks"]) for row in rows] == [("linear_attention", 8)]
    leaves = {k: t.requires_grad_() for k, t in inputs.items()}
    rows = fulgurite.explain(lambda: attend(leaves)[0].sum().backward())
    assert [(row["kernel"], row["tasks"]) for row in rows] == [
        ("linear_attention", 8),
        ("linear_attention_backward", 8),
        ("linear_attention_decay_sums", 8),
    ]
