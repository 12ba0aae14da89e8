"""Run a call with its gradients, and hand back every result under a readable label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.registry import Operator, Sample, argument_name, flatten, map_tensors

Results = dict[str, Tensor]
"""Outputs by their schema's names, gradients as ``grad of <argument>``, written arguments as
``new <argument>``; tensors of lists are numbered."""


def to_float64(tensor: Tensor) -> Tensor:
    """A floating-point tensor as float64, others as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def copy_with_strides(tensor: Tensor) -> Tensor:
    """A copy in fresh memory with the same strides, gaps between elements included."""
    copy = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copy.copy_(tensor)


def evaluate(
    function: Callable[..., Any],
    operator: Operator,
    sample: Sample,
    *,
    cotangent_dtype: torch.dtype = torch.float64,
    differentiable: tuple[int | str, ...] | None = None,
) -> Results:
    """Outputs of ``function(*args, **kwargs)`` and the gradients of its differentiable arguments.

    The gradients belong to random cotangents, the same for every function that is given the same
    sample: they are rounded to ``cotangent_dtype`` first, so that a float64 reference and a 16-bit
    operator see the same numbers. What the operator writes is copied before the call.
    """
    written = set(operator.mutates)
    sought = operator.differentiable if differentiable is None else differentiable
    leaves: dict[str, Tensor] = {}

    def prepare(key: int | str, value: Any) -> Any:
        if key in written:
            return map_tensors(copy_with_strides, value)
        if key not in sought or not flatten(value):
            return value
        value = map_tensors(differentiable_leaf, value)
        leaves.update(labelled(f"grad of {argument_name(operator, key)}", value))
        return value

    args = tuple(prepare(i, value) for i, value in enumerate(sample.args))
    kwargs = {key: prepare(key, value) for key, value in sample.kwargs.items()}
    result = function(*args, **kwargs)

    if operator.mutates:
        return written_results(operator, Sample(sample.name, args, kwargs), result)
    outputs = labelled_outputs(operator, result)
    return outputs | gradients(outputs, leaves, cotangent_dtype)


def differentiable_leaf(tensor: Tensor) -> Tensor:
    """The same numbers at the same strides, as a leaf of autograd; integers stay as they are."""
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def labelled(label: str, value: Any) -> Results:
    """A tensor under its label; the tensors of a list under numbered labels."""
    if isinstance(value, Tensor):
        return {label: value}
    return {f"{label}[{i}]": tensor for i, tensor in enumerate(flatten(value))}


def labelled_outputs(operator: Operator, result: Any) -> Results:
    """The returned tensors by the names of the schema, or numbered where it has none."""
    tensors = flatten(result)
    returns = operator.op._schema.returns
    names = [value.name or f"output {i}" for i, value in enumerate(returns)]
    if len(names) != len(tensors):
        raise AssertionError(f"{operator.name} returns {names}, got {len(tensors)} tensors")
    return dict(zip(names, tensors, strict=True))


def written_results(operator: Operator, sample: Sample, result: Any) -> Results:
    """What a mutating call wrote: the arguments themselves, or what a reference returned."""
    results: Results = {}
    for key in operator.mutates:
        if sample[key] is not None:
            results |= labelled(f"new {argument_name(operator, key)}", sample[key])
    returned = flatten(result)
    if not returned:
        return results
    if len(returned) != len(results):
        raise AssertionError(
            f"{len(results)} tensors are written, the reference returned {len(returned)}"
        )
    return dict(zip(results, returned, strict=True))


def gradients(outputs: Results, leaves: Results, cotangent_dtype: torch.dtype) -> Results:
    """The gradient of every leaf for one random cotangent per differentiable output."""
    sources = {label: leaf for label, leaf in leaves.items() if leaf.requires_grad}
    targets = [output for output in outputs.values() if output.requires_grad]
    if not sources or not targets:
        return {}
    generator = torch.Generator().manual_seed(0)
    cotangents = []
    for target in targets:
        noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
        cotangents.append(noise.to(cotangent_dtype).to(target.device, target.dtype))
    found = torch.autograd.grad(
        targets, list(sources.values()), cotangents, allow_unused=True, materialize_grads=True
    )
    return {label: output.detach() for label, output in zip(sources, found, strict=True)}
