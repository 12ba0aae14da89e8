"""The double backward as an operator: its memory, its checks, and what is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from common_checks import DEVICE, assert_same_bits, threads
from fulgurite.demo.memory import peak_bytes
from fulgurite.testing.references.attention import attention
from fulgurite.testing.samples.attention import qkv
from second_derivatives import (
    SMALL,
    attention_op,
    call,
    cotangents_for,
    make_case,
    noise_like,
    second_derivatives,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
double_backward_op = torch.ops.fulgurite._attention_double_backward


# ---------------------------------------------------------------- memory


def test_memory_is_of_tiles() -> None:
    """One head of 4096 queries and keys: less than half of one float32 matrix N×M."""
    N = 4096
    generator = torch.Generator().manual_seed(0)
    leaves = [t.requires_grad_() for t in qkv(generator, torch.float32, DEVICE, B=1, Hq=1, N=N, M=N,
                                              D=8)]  # fmt: skip
    out, lse = attention_op(*leaves, causal=True)
    first = torch.autograd.grad(out.square().sum() + lse.sum(), leaves, create_graph=True)
    loss = sum(grad.sum() for grad in first)
    assert isinstance(loss, Tensor)
    with threads(1):
        assert peak_bytes(lambda: torch.autograd.grad(loss, leaves)) < N * N * 4 / 2


def test_first_derivatives_keep_nothing() -> None:
    leaves = [
        t.requires_grad_() for t in qkv(torch.Generator(), torch.float32, DEVICE, N=3, M=4, D=5)
    ]
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


# ---------------------------------------------------------------- its derivative by what comes in


@pytest.mark.parametrize("case", ["softcap_bias_sink", "dropout", "relu2_bias_softcap", "causal"])
def test_it_is_linear_in_what_comes_in(case: str) -> None:
    """By the incoming gradients it has a derivative, and that is exact: a Hessian is symmetric."""
    inputs, kwargs = make_case(case, SMALL)
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    leaves = {k: t.requires_grad_() for k, t in (inputs | cotangents).items()}
    outputs = call(attention_op, {k: leaves[k] for k in inputs}, kwargs)
    first = torch.autograd.grad(
        outputs, [leaves[k] for k in inputs], [leaves[k] for k in cotangents], create_graph=True
    )
    given = [t.requires_grad_() for t in directions.values()]

    def second(*incoming: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            first, list(leaves.values()), incoming, create_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip

    with threads(1):
        assert torch.autograd.gradcheck(second, given)
    weights = noise_like(leaves, seed=3)
    loss = sum((weights[k] * r).sum() for k, r in zip(leaves, second(*given), strict=True))
    assert isinstance(loss, Tensor)
    through = torch.autograd.grad(loss, given)
    for one, other in zip(through, adjoint(leaves, inputs, kwargs, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def adjoint(leaves: Any, inputs: Any, kwargs: Any, weights: Any) -> tuple[Tensor, ...]:
    """∇(Σ v∘outputs) + ∇²F·v of the inputs, from the reference."""
    own = {k: t.detach().requires_grad_() for k, t in leaves.items()}
    outputs = call(attention, {k: own[k] for k in inputs}, kwargs)
    grads = [own[k] for k in own if k not in inputs]
    wanted = [own[k] for k in inputs]
    first = torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True,
                                materialize_grads=True)  # fmt: skip
    value = sum((weights[k] * g).sum() for k, g in zip(inputs, first, strict=True))
    incoming = [weights[k] for k in own if k not in inputs]
    for output, weight in zip(outputs, incoming, strict=True):
        value = value + (weight * output).sum()
    assert isinstance(value, Tensor)
    return torch.autograd.grad(value, wanted)


@pytest.mark.parametrize("name", ["hvp", "vhp", "jvp", "hessian", "jacobian", "vjp"])
def test_torch_autograd_functional(name: str) -> None:
    query, key, value = qkv(torch.Generator().manual_seed(0), torch.float64, DEVICE, N=3, M=4, D=2)
    function = getattr(torch.autograd.functional, name)
    vector = () if name in ("hessian", "jacobian") else (torch.ones_like(query),)

    def result(attend: Callable[..., Any]) -> Any:
        given = function(lambda q: attend(q, key, value, causal=True)[0].pow(3).sum(), query,
                         *(v if name != "vjp" else v.sum() for v in vector))  # fmt: skip
        return given[-1] if isinstance(given, tuple) else given

    torch.testing.assert_close(result(attention_op), result(attention), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("poisoned", [False, True])
def test_nothing_waits_for_the_host(poisoned: bool) -> None:
    inputs, kwargs = make_case("dropout", SMALL)
    kwargs["mask"] = torch.arange(SMALL["M"]) > 1
    cotangents, directions = cotangents_for(inputs, kwargs), noise_like(inputs, seed=2)
    if poisoned:
        inputs["value"][:, :, 0] = torch.nan
    with profile() as seen:
        second_derivatives(attention_op, inputs, cotangents, directions, kwargs)
    names = {event.name for event in seen.function_events or []}
    assert "aten::masked_fill_" in names
    assert not names & {
        "aten::item",
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::nonzero",
    }


# ---------------------------------------------------------------- refused

NO_FUNCTORCH = r"cannot use C\+\+ torch::autograd::Function with functorch transforms"
NO_FORWARD_MODE = r"jvp is not implemented for the c\+\+ API of custom Function"


def loss_of_query() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    query, key, value = qkv(torch.Generator().manual_seed(0), torch.float64, DEVICE, N=3, M=4, D=2)
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


def test_linearize_raises() -> None:
    with pytest.raises(RuntimeError, match=NO_FORWARD_MODE):
        torch.func.linearize(*loss_of_query())


def test_a_second_derivative_of_a_compiled_function_raises() -> None:
    loss, query = loss_of_query()
    query.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(query), query, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(first.sum(), query)


def test_forward_mode_through_the_backward_raises() -> None:
    """A tangent of the cotangent alone: it must not be dropped."""
    query, key, value = qkv(torch.Generator().manual_seed(0), torch.float64, DEVICE, N=3, M=4, D=2)
    query.requires_grad_()
    out, _ = attention_op(query, key, value)
    with fwAD.dual_level():
        dual = fwAD.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(RuntimeError, match=NO_FORWARD_MODE):
            torch.autograd.grad(out, query, dual)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_and_batched_gradients_work() -> None:
    """torch calls the operator once per item: vmap, and is_grads_batched of a first derivative."""
    query, key, value = qkv(torch.Generator().manual_seed(0), torch.float64, DEVICE, N=3, M=4, D=2)
    queries = torch.stack([query, 2 * query])
    mapped = torch.func.vmap(lambda q: attention_op(q, key, value)[0])(queries)
    for one, q in zip(mapped, queries, strict=True):
        torch.testing.assert_close(one, attention_op(q, key, value)[0])
    loss, query = loss_of_query()
    hessian = torch.autograd.functional.hessian(loss, query)
    vectorized = torch.autograd.functional.hessian(loss, query, vectorize=True)
    torch.testing.assert_close(hessian, vectorized)
