"""Every registered operator has an entry in ``fulgurite.testing.OPERATORS``, and each is sound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common_checks import DEVICE, assert_same_bits, samples_of
from fulgurite.testing import OPERATORS, Operator, Sample, evaluate
from fulgurite.testing.registry import argument_name, flatten

PREFIX = "fulgurite::"

each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
each_differentiable = pytest.mark.parametrize(
    "operator", [pytest.param(o, id=n) for n, o in OPERATORS.items() if o.differentiable]
)


# Reached by differentiating twice: tests/python/attention/test_double_backward_limits.py.
DOUBLE_BACKWARD = {"_attention_double_backward", "_attention_dropout_keep"}


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix(PREFIX).split(".")[0] for name in names if name.startswith(PREFIX)}


def is_backward(name: str) -> bool:
    return name.startswith("_")


def test_every_registered_operator_has_an_entry() -> None:
    public = {name for name in registered() if not is_backward(name)}
    assert public == {name for name in OPERATORS if not is_backward(name)}


@each_operator
def test_samples_are_varied_and_reproducible(operator: Operator) -> None:
    for dtype in operator.dtypes:
        first = list(operator.samples(dtype, DEVICE, 0))
        again = list(operator.samples(dtype, DEVICE, 0))
        other = list(operator.samples(dtype, DEVICE, 1))
        names = [sample.name for sample in first]
        assert 3 <= len(set(names)) == len(names)
        assert names == [sample.name for sample in other], "names depend on the seed"
        for one, same in zip(first, again, strict=True):
            pairs = zip(one.tensors(), same.tensors(), strict=True)
            for i, (a, b) in enumerate(pairs):
                assert_same_bits({f"tensor {i}": a}, {f"tensor {i}": b}, one.name)
        assert any(
            not torch.equal(a, b)
            for one, two in zip(first, other, strict=True)
            for a, b in zip(one.tensors(), two.tensors(), strict=True)
            if a.shape == b.shape
        ), "the seed changes nothing"


@each_operator
def test_samples_include_empty_sizes(operator: Operator) -> None:
    samples = samples_of(operator.name, operator.dtypes[0], 0).values()
    tensors = [tensor for sample in samples for tensor in sample.tensors()]
    has_sizes = len({tensor.shape for tensor in tensors if tensor.dim() > 0}) > 1
    has_empty = any(tensor.numel() == 0 for tensor in tensors)
    has_empty_list = any(v == [] for s in samples for v in (*s.args, *s.kwargs.values()))
    assert has_empty or has_empty_list or not has_sizes


@each_operator
def test_error_samples_are_named(operator: Operator) -> None:
    names = [wrong.name for wrong in operator.errors(DEVICE)]
    assert names
    assert len(set(names)) == len(names)


@each_operator
def test_mutated_arguments_are_those_of_the_schema(operator: Operator) -> None:
    arguments = operator.op._schema.arguments
    written = {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}
    assert {argument_name(operator, key) for key in operator.mutates} == written


# ---------------------------------------------------------------- backward operators


class BackwardCalls(TorchDispatchMode):
    """Records the calls of fulgurite's backward operators and what they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        namespace, name = func._schema.name.split("::")
        if namespace == "fulgurite" and is_backward(name):
            self.calls.append((func, args, kwargs, result))
        return result


def backward_calls(
    operator: Operator, sample: Sample, keys: tuple[int | str, ...]
) -> list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]:
    with BackwardCalls() as recorded:
        evaluate(operator.op, operator, sample, differentiable=keys)
    return recorded.calls


def framework_samples(operator: Operator) -> list[Sample]:
    dtype = torch.float32 if torch.float32 in operator.dtypes else operator.dtypes[0]
    return list(samples_of(operator.name, dtype, 0).values())


def test_every_backward_operator_is_reached() -> None:
    reached = {
        call[0]._schema.name.removeprefix(PREFIX)
        for operator in OPERATORS.values()
        if operator.differentiable
        for sample in framework_samples(operator)
        for call in backward_calls(operator, sample, operator.differentiable)
    }
    backward = {name for name in registered() if is_backward(name)}
    assert backward <= reached | DOUBLE_BACKWARD | set(OPERATORS)


@each_differentiable
def test_opcheck_of_backward(operator: Operator) -> None:
    for sample in framework_samples(operator)[:2]:
        for func, args, kwargs, _ in backward_calls(operator, sample, operator.differentiable):
            call = Sample(sample.name, args, kwargs).map(lambda tensor: tensor.detach())
            torch.library.opcheck(func, call.args, call.kwargs)


@each_differentiable
def test_meta_of_backward_equals_real(operator: Operator) -> None:
    for dtype in operator.dtypes:
        for sample in samples_of(operator.name, dtype, 0).values():
            for func, args, kwargs, result in backward_calls(
                operator, sample, operator.differentiable
            ):
                call = Sample(sample.name, args, kwargs).map(lambda tensor: tensor.to("meta"))
                meta = flatten(func(*call.args, **call.kwargs))
                for real, found in zip(flatten(result), meta, strict=True):
                    layout = (found.dtype, found.shape, found.stride())
                    assert layout == (real.dtype, real.shape, real.stride()), sample.name


@each_differentiable
def test_backward_returns_nothing_that_was_not_asked_for(operator: Operator) -> None:
    for sample in framework_samples(operator)[:2]:
        for key in operator.differentiable:
            for func, args, kwargs, result in backward_calls(operator, sample, (key,)):
                names = [argument.name for argument in func._schema.arguments]
                given = dict(zip(names, args, strict=False)) | kwargs
                if "output_mask" not in given:
                    continue
                asked = given["output_mask"]
                sizes = [grad.numel() for grad in flatten(result)]
                assert len(asked) == len(sizes)
                assert len(asked) == 1 or not all(asked)
                assert all(
                    size == 0 for size, wanted in zip(sizes, asked, strict=True) if not wanted
                )
