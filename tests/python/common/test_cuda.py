"""What operators answer to tensors of a card: calling what the dispatcher would needs none."""

from __future__ import annotations

import re

import pytest
import torch

from common_checks import DEVICE
from cuda_families import OPERATORS as WITH_KERNELS
from fulgurite._config import cuda_targets
from fulgurite.testing import OPERATORS, Operator

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
# Operations of ATen, which run on every device.
COMPOSITE = {"fulgurite::_attention_double_backward"}


def registered() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name for name in names if name.startswith("fulgurite::"))


def test_every_operator_answers_to_cuda_tensors() -> None:
    own = {
        name
        for name in registered()
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    }
    assert set(registered()) - own == COMPOSITE
    for name in COMPOSITE:
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CUDA")


without_kernels = [
    pytest.param(operator, id=name)
    for name, operator in OPERATORS.items()
    if name not in WITH_KERNELS or not cuda_targets()
]


@pytest.mark.parametrize("operator", without_kernels)
def test_says_that_there_is_no_kernel(operator: Operator) -> None:
    sample = next(iter(operator.samples(operator.dtypes[0], DEVICE, 0)))
    before = [tensor.clone() for tensor in sample.tensors()]
    says = rf"^fulgurite::{operator.name}: (built without CUDA|has no CUDA kernel yet)\b"
    with pytest.raises(NotImplementedError, match=says):
        operator.op.redispatch(CUDA, *sample.args, **sample.kwargs)
    for tensor, old in zip(sample.tensors(), before, strict=True):
        torch.testing.assert_close(tensor, old, rtol=0, atol=0, equal_nan=True)


def test_names_the_operator_that_was_called() -> None:
    x, ids, weights = torch.randn(3, 4), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    w_in, w_out = torch.randn(2, 10, 4), torch.randn(2, 4, 5)
    forward = torch.ops.fulgurite._moe_experts_forward.default
    with pytest.raises(NotImplementedError, match=re.escape("fulgurite::moe_experts: ")):
        forward.redispatch(CUDA, x, ids, weights, w_in, w_out)
