"""Differentiating attention twice: second derivatives, their memory, and what is refused."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fulgurite.nn.functional as F
from common_checks import CPU, Results, assert_same_bits, threads
from fulgurite.demo.memory import peak_bytes
from fulgurite.testing import ErrorStatistics, assert_accurate, to_float64
from fulgurite.testing.references.attention import (
    PAIRWISE_LIMIT,
    attention,
    attention_naive,
)
from fulgurite.testing.samples.attention import qkv
from fulgurite.testing.tolerances import MIN_SEEDS

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
attention_op = torch.ops.fulgurite.attention
double_backward_op = torch.ops.fulgurite._attention_double_backward
Attention = Callable[..., tuple[Tensor, Tensor]]

SMALL = {"B": 2, "Hq": 2, "Hkv": 1, "N": 3, "M": 4, "D": 2, "Dv": 3}
# Beyond a tile, of 128 rows over the heads of a group.
MIDDLE = {"B": 2, "Hq": 4, "Hkv": 2, "N": 70, "M": 60, "D": 8, "Dv": 6}
LARGE = {"B": 2, "Hq": 4, "Hkv": 2, "N": 150, "M": 140, "D": 6, "Dv": 5}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def coin(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.7


def hiding_bias(generator: torch.Generator, *shape: int) -> Tensor:
    return normal(generator, *shape).masked_fill(~coin(generator, *shape), -math.inf)


# What a case adds to query, key and value of the sizes B, Hq, N, M.
CASES: dict[str, Callable[[torch.Generator, int, int, int, int], dict[str, Any]]] = {
    "plain": lambda g, B, H, N, M: {},
    "scale": lambda g, B, H, N, M: {"scale": 0.7},
    "causal": lambda g, B, H, N, M: {"causal": True},
    "causal_top_left": lambda g, B, H, N, M: {"causal": True, "align": "top_left"},
    "window": lambda g, B, H, N, M: {"window_left": 1, "window_right": 0},
    "window_sink_tokens": lambda g, B, H, N, M: {
        "causal": True,
        "window_left": 1,
        "sink_tokens": 2,
    },
    "chunks": lambda g, B, H, N, M: {"chunk_size": 3},
    "mask": lambda g, B, H, N, M: {"mask": coin(g, B, H, N, M)},
    "mask_of_keys": lambda g, B, H, N, M: {"mask": coin(g, B, 1, 1, M)},
    "mask_of_rows": lambda g, B, H, N, M: {"mask": coin(g, N, 1)},
    "mask_of_nothing": lambda g, B, H, N, M: {"mask": torch.zeros(1, dtype=torch.bool)},
    "layout": lambda g, B, H, N, M: {
        "block_layout": coin(g, H, -(-N // 2), -(-M // 2)),
        "block_size": 2,
    },
    "layout_of_all_heads": lambda g, B, H, N, M: {
        "block_layout": coin(g, 1, -(-N // 3), -(-M // 3)).byte(),
        "block_size": 3,
    },
    "bias": lambda g, B, H, N, M: {"bias": hiding_bias(g, B, H, N, M)},
    "bias_periodic": lambda g, B, H, N, M: {"bias": hiding_bias(g, B // 2, 1, N, M)},
    "bias_of_keys": lambda g, B, H, N, M: {"bias": normal(g, H, 1, M), "causal": True},
    "bias_of_rows": lambda g, B, H, N, M: {"bias": normal(g, N, 1)},
    "sink": lambda g, B, H, N, M: {"sink": normal(g, H), "causal": True},
    "alibi": lambda g, B, H, N, M: {"alibi_slopes": normal(g, H).abs()},
    "alibi_of_batch": lambda g, B, H, N, M: {"alibi_slopes": normal(g, B, H), "causal": True},
    "softcap": lambda g, B, H, N, M: {"softcap": 0.8},
    "softcap_bias_sink": lambda g, B, H, N, M: {
        "softcap": 1.5,
        "bias": hiding_bias(g, 1, H, N, M),
        "sink": normal(g, H),
        "alibi_slopes": normal(g, H),
        "mask": coin(g, N, M),
    },
    "relu2": lambda g, B, H, N, M: {"score": "relu2", "score_scale": 0.5, "causal": True},
    "relu2_bias_softcap": lambda g, B, H, N, M: {
        "score": "relu2",
        "bias": hiding_bias(g, H, N, M),
        "softcap": 2.0,
    },
    "laplace": lambda g, B, H, N, M: {"score": "laplace", "score_scale": 0.5},
    "laplace_bias": lambda g, B, H, N, M: {"score": "laplace", "bias": hiding_bias(g, N, M)},
    "dropout": lambda g, B, H, N, M: {
        "dropout_p": 0.3,
        "philox": torch.tensor([123456789012345, (1 << 40) + 3]),
        "sink": normal(g, H),
    },
}
each_case = pytest.mark.parametrize("case", CASES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def make_case(
    case: str, sizes: dict[str, int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Results, dict[str, Any]]:
    """Differentiable inputs by name, and the other arguments."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(zip(("query", "key", "value"), qkv(generator, dtype, CPU, **sizes), strict=True))
    kwargs = CASES[case](generator, *(sizes[name] for name in ("B", "Hq", "N", "M")))
    for name in ("bias", "sink"):
        if name in kwargs:
            tensors[name] = kwargs.pop(name).to(dtype)
    if "alibi_slopes" in kwargs and dtype != torch.float64:
        kwargs["alibi_slopes"] = kwargs["alibi_slopes"].float()
    return tensors, kwargs


def call(function: Attention, inputs: Results, kwargs: dict[str, Any]) -> list[Tensor]:
    """The outputs that have a gradient; the −inf of an empty row, which has none, replaced."""
    query, key, value = (inputs[name] for name in ("query", "key", "value"))
    added = {name: inputs[name] for name in ("bias", "sink") if name in inputs}
    out, lse = function(query, key, value, **added, **kwargs)
    outputs = [out] if kwargs.get("score", "softmax") != "softmax" else [out, lse]
    return [o.masked_fill(o.detach() == -math.inf, 0.0) for o in outputs]


def noise_like(tensors: dict[str, Tensor], seed: int) -> Results:
    generator = torch.Generator().manual_seed(seed)
    return {k: normal(generator, *t.shape).to(t.dtype) for k, t in tensors.items()}


def cotangents_for(inputs: Results, kwargs: dict[str, Any]) -> Results:
    """Random gradients of out and lse."""
    outputs = call(attention_op, inputs, kwargs)
    return noise_like({f"grad {i}": output for i, output in enumerate(outputs)}, seed=1)


def second_derivatives(
    function: Attention,
    inputs: Results,
    cotangents: Results,
    directions: Results,
    kwargs: dict[str, Any],
    wanted: tuple[str, ...] | None = None,
) -> Results:
    """Gradients of Σ direction·(first gradient), by inputs and by the cotangents of the outputs."""
    leaves = {k: t.detach().requires_grad_() for k, t in (inputs | cotangents).items()}
    outputs = call(function, {k: leaves[k] for k in inputs}, kwargs)
    first = torch.autograd.grad(
        outputs,
        [leaves[name] for name in directions],
        [leaves[name].to(o.dtype) for name, o in zip(cotangents, outputs, strict=True)],
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    labels = tuple(leaves) if wanted is None else wanted
    second = torch.autograd.grad(
        first,
        [leaves[label] for label in labels],
        [directions[name].to(g.dtype) for name, g in zip(directions, first, strict=True)],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(labels, second, strict=True))


def reference_of(
    inputs: Results, cotangents: Results, directions: Results, kwargs: dict[str, Any]
) -> Results:
    def wide(tensors: Results) -> Results:
        return {k: to_float64(t) for k, t in tensors.items()}

    kwargs = {k: to_float64(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    with threads(1):
        return second_derivatives(
            attention, wide(inputs), wide(cotangents), wide(directions), kwargs
        )


# ---------------------------------------------------------------- correct


@each_case
def test_gradgradcheck(case: str) -> None:
    inputs, kwargs = make_case(case, SMALL)
    hidden = {k: torch.isinf(t) for k, t in inputs.items()}

    def function(*tensors: Tensor) -> list[Tensor]:
        given = {
            k: t.masked_fill(hidden[k], -math.inf) for k, t in zip(inputs, tensors, strict=True)
        }
        return call(attention_op, given, kwargs)

    leaves = [t.nan_to_num(neginf=0.0).requires_grad_() for t in inputs.values()]
    with threads(1):
        assert torch.autograd.gradgradcheck(function, leaves)


@each_case
@pytest.mark.parametrize("sizes", [SMALL, LARGE], ids=["small", "large"])
def test_equals_the_reference_differentiated_twice(case: str, sizes: dict[str, int]) -> None:
    inputs, kwargs = make_case(case, sizes)
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    assert_accurate(
        actual, reference_of(inputs, cotangents, directions, kwargs), None, torch.float64
    )


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ["causal", "softcap_bias_sink", "laplace", "dropout"])
def test_as_accurate_as_first_derivatives(case: str, dtype: torch.dtype) -> None:
    """The rule that every operator is held to; plain PyTorch in the dtype is its yardstick."""
    statistics = ErrorStatistics(dtype)
    for seed in range(MIN_SEEDS):
        inputs, kwargs = make_case(case, MIDDLE, dtype, seed)
        cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
        given = (inputs, cotangents, directions, kwargs)
        actual = second_derivatives(attention_op, *given)
        with threads(1):
            naive = second_derivatives(attention_naive, *given)
        statistics.add(actual, reference_of(*given), naive)
        for label, grad in actual.items():
            assert grad.dtype == (inputs | cotangents)[label].dtype
            assert grad.is_contiguous()
    statistics.assert_accurate()


@pytest.mark.parametrize(
    "sizes",
    [{"B": 0}, {"Hq": 0, "Hkv": 0}, {"Hq": 0, "Hkv": 2}, {"N": 0}, {"M": 0}, {"D": 0}, {"Dv": 0}],
    ids=str,
)
@pytest.mark.parametrize("extra", ["plain", "softcap_bias_sink", "relu2_bias_softcap"])
def test_empty_sizes(sizes: dict[str, int], extra: str) -> None:
    inputs, kwargs = make_case(extra, SMALL | sizes)
    kwargs["scale"] = 0.5
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    if "Hq" in sizes:  # what the reference cannot reshape
        assert all((grad == 0).all() for grad in actual.values())
    else:
        expected = reference_of(inputs, cotangents, directions, kwargs)
        assert_accurate(actual, expected, None, torch.float64)


@pytest.mark.parametrize("used", [["query"], ["value"], ["key", "bias"], ["sink"]], ids="-".join)
def test_some_gradients_differentiated(used: list[str]) -> None:
    """Only some first gradients lead on, and only some second ones are asked for."""
    inputs, kwargs = make_case("softcap_bias_sink", SMALL)
    cotangents = cotangents_for(inputs, kwargs)
    directions = {k: t for k, t in noise_like(inputs, seed=2).items() if k in used}
    together = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    expected = reference_of(inputs, cotangents, directions, kwargs)
    assert_accurate(together, expected, None, torch.float64)
    for label, grad in together.items():
        alone = second_derivatives(
            attention_op, inputs, cotangents, directions, kwargs, wanted=(label,)
        )
        assert_same_bits(alone, {label: grad})


@pytest.mark.parametrize("used", [0, 1], ids=["out", "lse"])
def test_loss_of_one_output(used: int) -> None:
    inputs, kwargs = make_case("sink", SMALL)

    def one_output(function: Attention) -> Attention:
        return lambda *args, **options: function(*args, **options)[used : used + 1] * 2

    grads = []
    for function in (attention_op, attention):
        leaves = {k: t.clone().requires_grad_() for k, t in inputs.items()}
        output = call(one_output(function), leaves, kwargs)[0]
        first = torch.autograd.grad(
            output.pow(3).sum(),
            list(leaves.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        loss = sum(g.square().sum() for g in first)
        assert isinstance(loss, Tensor)
        second = torch.autograd.grad(
            loss, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        grads.append(dict(zip(leaves, second, strict=True)))
    assert_accurate(grads[0], grads[1], None, torch.float64)


def test_float32_bias_and_sink_beside_other_dtypes() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        inputs, kwargs = make_case("softcap_bias_sink", SMALL, dtype)
        inputs |= {k: inputs[k].float() for k in ("bias", "sink")}
        cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
        actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
        expected = reference_of(inputs, cotangents, directions, kwargs)
        for label, grad in actual.items():
            assert grad.dtype == (inputs | cotangents)[label].dtype
            rtol = 2**-22 if grad.dtype == torch.float32 else 2**-7
            torch.testing.assert_close(grad.double(), expected[label], rtol=rtol, atol=rtol)


def test_gradient_penalty() -> None:
    """The use: a loss on the size of an input gradient, and its gradient by the parameters."""
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, 2, 7, 8)
    weights = [normal(generator, 8, 8) / 3 for _ in range(3)]

    def parameter_gradients(attend: Callable[..., Tensor]) -> Results:
        leaves = [weight.clone().requires_grad_() for weight in weights]
        sample = x.clone().requires_grad_()
        heads = [(sample @ w).unflatten(-1, (2, 4)).transpose(1, 2) for w in leaves]
        critic = attend(*heads).square().sum()
        (slope,) = torch.autograd.grad(critic, sample, create_graph=True)
        penalty = (slope.norm(dim=-1) - 1).square().mean()
        (critic + 10 * penalty).backward()
        return {f"weight {i}": leaf.grad for i, leaf in enumerate(leaves) if leaf.grad is not None}

    actual = parameter_gradients(lambda q, k, v: F.attention(q, k, v, causal=True))
    expected = parameter_gradients(lambda q, k, v: attention(q, k, v, causal=True)[0])
    assert len(actual) == 3
    assert_accurate(actual, expected, None, torch.float64)


def test_autocast_does_not_lower_the_sums() -> None:
    inputs, kwargs = make_case("causal", SMALL, torch.float32)
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    leaves = {k: t.requires_grad_() for k, t in inputs.items()}
    outputs = call(attention_op, leaves, kwargs)
    first = torch.autograd.grad(
        outputs, list(leaves.values()), list(cotangents.values()), create_graph=True
    )

    def second() -> Results:
        grads = torch.autograd.grad(
            first, list(leaves.values()), list(directions.values()), retain_graph=True
        )
        return dict(zip(leaves, grads, strict=True))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = second()
    assert_same_bits(lowered, second())


# ---------------------------------------------------------------- hidden values

any_call = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "case": st.sampled_from(
            ["plain", "causal", "window", "mask", "bias", "sink", "softcap", "laplace"]
        ),
        "N": st.integers(1, 9),
        "M": st.integers(1, 12),
        "group": st.integers(1, 2),
    }
)


@given(
    draw=any_call,
    where=st.sampled_from(["query", "key", "value", "grad 0"]),
    directed=st.booleans(),
    places=st.lists(st.integers(0, 10_000), min_size=1, max_size=2),
)
def test_what_is_hidden_never_leaks(
    draw: dict[str, Any], where: str, directed: bool, places: list[int]
) -> None:
    """NaN in an input, a cotangent or a direction reaches only what a kept pair reads."""
    sizes = {"B": 1, "Hq": draw["group"], "Hkv": 1, "N": draw["N"], "M": draw["M"], "D": 2, "Dv": 3}
    inputs, kwargs = make_case(draw["case"], sizes, seed=draw["seed"])
    assert inputs["query"].numel() * sizes["M"] <= PAIRWISE_LIMIT
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    clean = reference_of(inputs, cotangents, directions, kwargs)
    tensor = directions[where] if directed and where != "grad 0" else (inputs | cotangents)[where]
    flat = tensor.view(-1)
    for place in places:
        flat[place % flat.numel()] = math.nan
    poisoned = reference_of(inputs, cotangents, directions, kwargs)
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    for label, grad in actual.items():
        reached = poisoned[label].isnan()
        assert not (grad.isnan() & ~reached).any(), label
        torch.testing.assert_close(
            grad.masked_fill(reached, 0), clean[label].masked_fill(reached, 0), rtol=1e-9, atol=1e-9
        )


@each_dtype
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_padding_may_hold_anything(dtype: torch.dtype, number: float) -> None:
    """Keys that no query sees, and queries that see nothing, change no result."""
    inputs, kwargs = make_case("causal", LARGE, dtype)
    mask = coin(torch.Generator().manual_seed(3), 2, 1, 150, 140)
    mask[..., 90:] = False
    mask[:, :, 20:60] = False
    kwargs["mask"] = mask
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    clean = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    for tensors in (inputs, directions):
        tensors["key"][:, :, 90:] = number
        tensors["value"][:, :, 90:] = number
        tensors["query"][:, :, 20:60] = number
    for cotangent in cotangents.values():
        cotangent[:, :, 20:60] = number
    actual = second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    u = torch.finfo(dtype).eps
    for label, grad in actual.items():
        torch.testing.assert_close(grad, clean[label], rtol=4 * u, atol=16 * u)
        if label.startswith("grad"):
            continue
        assert label != "key" or (grad[:, :, 90:] == 0).all()


# ---------------------------------------------------------------- memory


def test_memory_is_of_tiles() -> None:
    """One head of 4096 queries and keys: less than half of one float32 matrix N×M."""
    N = 4096
    generator = torch.Generator().manual_seed(0)
    leaves = [t.requires_grad_() for t in qkv(generator, torch.float32, CPU, B=1, Hq=1, N=N, M=N,
                                              D=8)]  # fmt: skip
    out, lse = attention_op(*leaves, causal=True)
    first = torch.autograd.grad(out.square().sum() + lse.sum(), leaves, create_graph=True)
    loss = sum(grad.sum() for grad in first)
    assert isinstance(loss, Tensor)
    with threads(1):
        assert peak_bytes(lambda: torch.autograd.grad(loss, leaves)) < N * N * 4 / 2


def test_first_derivatives_keep_nothing() -> None:
    leaves = [t.requires_grad_() for t in qkv(torch.Generator(), torch.float32, CPU, N=3, M=4, D=5)]
    out, _ = attention_op(*leaves)
    cotangent = torch.ones_like(out)
    kept = weakref.ref(cotangent)
    grads = torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
    assert all(grad.grad_fn is None and not grad.requires_grad for grad in grads)
    del cotangent
    assert kept() is None


# ---------------------------------------------------------------- the operator


class Recorded(TorchDispatchMode):
    """Keeps the arguments of the last call of the double backward."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is double_backward_op.default:
            self.args, self.kwargs = args, kwargs or {}
        return func(*args, **(kwargs or {}))


def recorded_call(dtype: torch.dtype = torch.float64) -> tuple[list[Any], dict[str, Any]]:
    inputs, kwargs = make_case("softcap_bias_sink", SMALL, dtype)
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    with Recorded() as seen:
        second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    return [arg.detach() for arg in seen.args], {
        k: v.detach() if isinstance(v, Tensor) else v for k, v in seen.kwargs.items()
    }


def test_opcheck() -> None:
    args, kwargs = recorded_call()
    torch.library.opcheck(double_backward_op, args, kwargs)


@each_dtype
def test_meta_equals_real(dtype: torch.dtype) -> None:
    args, kwargs = recorded_call(dtype)
    real = double_backward_op(*args, **kwargs)
    meta = double_backward_op(
        *(arg.to("meta") for arg in args),
        **{k: v.to("meta") if isinstance(v, Tensor) else v for k, v in kwargs.items()},
    )
    for one, other in zip(meta, real, strict=True):
        assert one.is_meta
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())


def test_only_what_is_asked_for() -> None:
    args, kwargs = recorded_call()
    everything = double_backward_op(*args, **kwargs)
    for wanted in range(7):
        mask = [i == wanted for i in range(7)]
        results = double_backward_op(*args, **kwargs | {"output_mask": mask})
        assert [r.numel() > 0 for r in results] == mask
        assert_same_bits({"result": results[wanted]}, {"result": everything[wanted]})


@pytest.mark.parametrize(
    ("position", "change", "error", "match"),
    [
        (0, lambda t: t.float(), TypeError, "gg_query"),
        (3, lambda t: t[..., :1], RuntimeError, "expected gg_bias of shape"),
        (4, lambda t: t[:1], RuntimeError, "gg_sink"),
        (5, lambda t: t[:, :1], RuntimeError, "grad_out"),
        (6, lambda t: t.float(), TypeError, "grad_lse"),
        (6, lambda t: None, ValueError, "grad_lse"),
        (8, lambda t: t[..., :1], RuntimeError, "key"),
    ],
)
def test_wrong_arguments(position: int, change: Any, error: type[Exception], match: str) -> None:
    args, kwargs = recorded_call()
    args[position] = change(args[position])
    with pytest.raises(error, match=match) as raised:
        double_backward_op(*args, **kwargs)
    assert "fulgurite::_attention_double_backward: " in str(raised.value)


def test_opcheck_of_the_backward_with_gradients() -> None:
    inputs, kwargs = make_case("bias", SMALL)
    cotangents = cotangents_for(inputs, kwargs)
    out, lse = attention_op(inputs["query"], inputs["key"], inputs["value"], bias=inputs["bias"])
    leaves = {k: t.requires_grad_() for k, t in (inputs | cotangents).items()}
    torch.library.opcheck(
        torch.ops.fulgurite._attention_backward,
        (
            leaves["grad 0"], leaves["grad 1"], leaves["query"], leaves["key"], leaves["value"],
            out, lse,
        ),
        {"bias": leaves["bias"], "output_mask": [True, False, True, True, False]},
    )  # fmt: skip


# ---------------------------------------------------------------- refused

NO_FUNCTORCH = r"cannot use C\+\+ torch::autograd::Function with functorch transforms"
NO_FORWARD_MODE = r"jvp is not implemented for the c\+\+ API of custom Function"


def loss_of_query() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    query, key, value = qkv(torch.Generator().manual_seed(0), torch.float64, CPU, N=3, M=4, D=2)
    return lambda q: attention_op(q, key, value)[0].pow(3).sum(), query


def apply_until_tensor(result: Any, query: Tensor) -> Any:
    """What a transform of a function returned, called."""
    return result(query) if callable(result) else result


def test_a_third_derivative_is_refused_where_it_is_taken() -> None:
    loss, query = loss_of_query()
    query.requires_grad_()
    (first,) = torch.autograd.grad(loss(query), query, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for fulgurite::_attention_double_backward"):
        torch.autograd.grad(second.sum(), query)


def test_packed_sequences_are_refused() -> None:
    query = torch.randn(5, 2, 4, requires_grad=True)
    offsets = torch.tensor([0, 2, 5])
    out, _ = torch.ops.fulgurite.attention_varlen(query, query, query, offsets, offsets)
    (first,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for fulgurite::_attention_varlen_backward"):
        first.sum().backward()


@pytest.mark.parametrize("name", ["grad", "vjp", "jacrev", "jacfwd", "hessian", "jvp"])
def test_functorch_transforms_raise(name: str) -> None:
    loss, query = loss_of_query()
    arguments = {"vjp": (loss, query), "jvp": (loss, (query,), (query,))}.get(name, (loss,))
    with pytest.raises(RuntimeError, match=NO_FUNCTORCH):
        apply_until_tensor(getattr(torch.func, name)(*arguments), query)


def test_forward_mode_raises() -> None:
    loss, query = loss_of_query()
    with fwAD.dual_level():
        dual = fwAD.make_dual(query, torch.ones_like(query))
        with pytest.raises(RuntimeError, match=NO_FORWARD_MODE):
            loss(dual)


def test_forward_mode_through_the_backward_raises() -> None:
    """A tangent of the cotangent alone: it must not be dropped."""
    query, key, value = qkv(torch.Generator().manual_seed(0), torch.float64, CPU, N=3, M=4, D=2)
    query.requires_grad_()
    out, _ = attention_op(query, key, value)
    with fwAD.dual_level():
        dual = fwAD.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(RuntimeError, match=NO_FORWARD_MODE):
            torch.autograd.grad(out, query, dual)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_and_batched_gradients_work() -> None:
    """torch calls the operator once per item: vmap, and is_grads_batched of a first derivative."""
    query, key, value = qkv(torch.Generator().manual_seed(0), torch.float64, CPU, N=3, M=4, D=2)
    queries = torch.stack([query, 2 * query])
    mapped = torch.func.vmap(lambda q: attention_op(q, key, value)[0])(queries)
    for one, q in zip(mapped, queries, strict=True):
        torch.testing.assert_close(one, attention_op(q, key, value)[0])
    loss, query = loss_of_query()
    hessian = torch.autograd.functional.hessian(loss, query)
    vectorized = torch.autograd.functional.hessian(loss, query, vectorize=True)
    torch.testing.assert_close(hessian, vectorized)
