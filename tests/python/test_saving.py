"""What operators keep for their backward: given back whatever happens, and kept of tensors that
autograd itself refuses."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common_checks import assert_same_bits, samples_of
from fulgurite.testing.registry import OPERATORS, Operator, Sample, flatten, select, substitute

DIFFERENTIABLE = [operator for operator in OPERATORS.values() if operator.differentiable]
each_differentiable = pytest.mark.parametrize("operator", DIFFERENTIABLE, ids=lambda o: o.name)


class Stop(Exception):
    pass


def typical(operator: Operator) -> list[Sample]:
    return list(samples_of(operator.name, torch.float32, 0).values())[:2]


def recorded(operator: Operator, sample: Sample) -> tuple[Sample, list[Tensor]]:
    """The same call with leaves that require a gradient."""
    leaves = {
        label: tensor.detach().clone().requires_grad_()
        for label, tensor in select(
            operator, sample, operator.differentiable, floating=True
        ).items()
    }
    return substitute(operator, sample, leaves), list(leaves.values())


def saved_count(operator: Operator, sample: Sample) -> int:
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        operator.op(*sample.args, **sample.kwargs)
    return count


def stopping_at(k: int) -> Callable[[Tensor], Tensor]:
    """A hook that raises at the k-th tensor that is saved."""
    left = k

    def pack(tensor: Tensor) -> Tensor:
        nonlocal left
        if left == 0:
            raise Stop
        left -= 1
        return tensor

    return pack


@each_differentiable
def test_nothing_stays_when_saving_stops(operator: Operator) -> None:
    """As torch.utils.checkpoint stops a recomputation early: a hook raises at the k-th tensor."""
    for sample in typical(operator):
        call, _ = recorded(operator, sample)
        for stop in range(saved_count(operator, call)):
            call, leaves = recorded(operator, sample)
            alive = [weakref.ref(leaf) for leaf in leaves]
            with (
                torch.autograd.graph.saved_tensors_hooks(stopping_at(stop), lambda tensor: tensor),
                pytest.raises(Stop),
            ):
                operator.op(*call.args, **call.kwargs)
            del call, leaves
            assert not any(reference() is not None for reference in alive), (sample.name, stop)


def made_under_inference_mode(sample: Sample, but: set[int]) -> Sample:
    with torch.inference_mode():
        return sample.map(lambda t: t if id(t) in but else t.clone())


@each_differentiable
def test_other_arguments_may_come_from_inference_mode(operator: Operator) -> None:
    """Masks, ids, offsets and tables that were made once under torch.inference_mode()."""
    for sample in typical(operator):
        wanted = select(operator, sample, operator.differentiable, floating=True)
        others = made_under_inference_mode(sample, {id(tensor) for tensor in wanted.values()})
        results = []
        for made in (sample, others):
            call, leaves = recorded(operator, made)
            outputs = [
                t for t in flatten(operator.op(*call.args, **call.kwargs)) if t.requires_grad
            ]
            grads = torch.autograd.grad(
                outputs, leaves, [torch.ones_like(t) for t in outputs], allow_unused=True
            )
            results.append({str(i): g for i, g in enumerate(grads) if g is not None})
        assert results[0].keys() == results[1].keys()
        assert_same_bits(results[0], results[1], sample.name)
