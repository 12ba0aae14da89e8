"""Random shapes and layouts of every operand: the bits of contiguous tensors."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common_checks import DEVICE
from fulgurite.testing.samples.optim import Lists

NAMES = ("params", "grads", "exp_avgs", "exp_avg_sqs", "masters", "emas")


def laid_out(tensor: Tensor, order: list[int], steps: list[int]) -> Tensor:
    """The same numbers, with dims in another order in memory and gaps between the elements."""
    shape = [tensor.shape[d] * step for d, step in zip(order, steps, strict=True)]
    view = torch.zeros(shape, dtype=tensor.dtype)[tuple(slice(None, None, s) for s in steps)]
    inverse = [order.index(d) for d in range(tensor.dim())]
    return view.permute(inverse).copy_(tensor)


@st.composite
def cases(draw: Any) -> tuple[Lists, dict[str, list[Tensor]]]:
    shapes = draw(
        st.lists(st.lists(st.integers(0, 6), max_size=4).map(tuple), min_size=1, max_size=3)
    )
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    lists = Lists(shapes, dtype, DEVICE, draw(st.integers(0, 99)))
    if dtype == torch.bfloat16:
        lists.masters = [torch.ones(shape, dtype=torch.int16) for shape in shapes]
    lists.emas = [m.clone() for m in lists.exp_avgs]

    def moved(tensor: Tensor) -> Tensor:
        dims = tensor.dim()
        order = draw(st.permutations(range(dims)))
        steps = draw(st.lists(st.integers(1, 2), min_size=dims, max_size=dims))
        return laid_out(tensor, order, steps)

    return lists, {name: [moved(t) for t in getattr(lists, name)] for name in NAMES}


@given(cases())
def test_any_layout_has_the_bits_of_contiguous_tensors(
    case: tuple[Lists, dict[str, list[Tensor]]],
) -> None:
    lists, moved = case
    dense = {name: [t.clone() for t in getattr(lists, name)] for name in NAMES}
    for written in (dense, moved):
        steps = [step.clone() for step in lists.steps]
        torch.ops.fulgurite.adamw_(*lists.args(**written, steps=steps), zero_grads=True)
    for name in NAMES:
        for i, (one, other) in enumerate(zip(dense[name], moved[name], strict=True)):
            assert torch.equal(one, other), (name, i)


@given(cases())
def test_any_layout_has_the_norm_of_contiguous_tensors(
    case: tuple[Lists, dict[str, list[Tensor]]],
) -> None:
    lists, moved = case
    dense = torch.ops.fulgurite.grad_stats(lists.grads)
    for one, other in zip(dense, torch.ops.fulgurite.grad_stats(moved["grads"]), strict=True):
        assert torch.equal(one, other)
