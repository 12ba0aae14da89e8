"""Run a call with its gradients, and hand back every result under a readable label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.registry import Operator, Sample, flatten, select, substitute

Results = dict[str, Tensor]
"""Outputs by their schema's names, gradients as ``grad of <argument>``, written arguments as
``new <argument>``; tensors of lists are numbered."""


def to_float64(tensor: Tensor) -> Tensor:
    """A floating-point tensor as float64, others as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def copy_with_strides(tensor: Tensor) -> Tensor:
    """A copy in fresh memory with the same strides; what lies between the elements comes along."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    whole.set_(tensor.untyped_storage())
    return whole.clone().as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


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
    if operator.mutates:
        return evaluate_mutation(function, operator, sample)
    keys = operator.differentiable if differentiable is None else differentiable
    leaves = {
        label: tensor.detach().requires_grad_()
        for label, tensor in select(operator, sample, keys, floating=True).items()
    }
    call = substitute(operator, sample, leaves)
    outputs = labelled_outputs(operator, function(*call.args, **call.kwargs))
    found = gradients(outputs, list(leaves.values()), cotangent_dtype)
    grads = {f"grad of {label}": grad for label, grad in zip(leaves, found, strict=True)}
    return {label: output.detach() for label, output in outputs.items()} | grads


def evaluate_mutation(function: Callable[..., Any], operator: Operator, sample: Sample) -> Results:
    """What a call wrote: its arguments afterwards, or the list that a reference returns instead."""
    written = {
        label: copy_with_strides(tensor)
        for label, tensor in select(operator, sample, operator.mutates).items()
    }
    call = substitute(operator, sample, written)
    returned = flatten(function(*call.args, **call.kwargs)) or list(written.values())
    if len(returned) != len(written):
        raise AssertionError(f"returned {len(returned)} tensors for {len(written)} written ones")
    return {f"new {label}": tensor for label, tensor in zip(written, returned, strict=True)}


def labelled_outputs(operator: Operator, result: Any) -> Results:
    """The returned tensors by the names of the schema, or numbered where it has none."""
    tensors = flatten(result)
    returns = operator.op._schema.returns
    names = [value.name or f"output {i}" for i, value in enumerate(returns)]
    if len(names) != len(tensors):
        raise AssertionError(f"{operator.name} returns {names}, got {len(tensors)} tensors")
    return dict(zip(names, tensors, strict=True))


def gradients(
    outputs: Results, leaves: list[Tensor], cotangent_dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The gradient of every leaf for one random cotangent per differentiable output."""
    targets = [output for output in outputs.values() if output.requires_grad]
    if not leaves:
        return ()
    if not targets:
        raise AssertionError(f"none of {list(outputs)} requires a gradient")
    generator = torch.Generator().manual_seed(0)
    cotangents = []
    for target in targets:
        noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
        cotangents.append(noise.to(cotangent_dtype).to(target.device, target.dtype))
    return torch.autograd.grad(
        targets, leaves, cotangents, allow_unused=True, materialize_grads=True
    )
