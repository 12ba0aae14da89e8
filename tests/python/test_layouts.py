"""Every operator names the tensor that no kernel reads: nested, sparse, quantized, complex."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from common_checks import samples_of
from fulgurite.testing import OPERATORS, Operator, Sample
from fulgurite.testing.registry import labelled, named, substitute
from test_generated import framework_dtype

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor"),
]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "sparse": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.reshape(-1, 1).to_sparse_csr(),
    "mkldnn": lambda x: x.float().to_mkldnn(),
}
DTYPES: dict[str, Callable[[Tensor], Tensor]] = {
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "complex": lambda x: x.to(torch.complex64),
}


MODES: dict[str, Any] = {
    "plain": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
}


def replaced(
    operator: Operator, change: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Sample]]:
    """The first samples of an operator with one of their tensors changed, and its label."""
    samples = list(samples_of(operator.name, framework_dtype(operator), 0).values())[:2]
    for sample in samples:
        for name, value in named(operator, sample).items():
            for label, tensor in labelled(name, value).items():
                if tensor.numel() > 0 and tensor.dim() > 0:  # no elements: none of a list
                    changed = {label: change(tensor.detach().clone())}
                    yield label, substitute(operator, sample, changed)


# In inference mode torch asks the class of jagged tensors before any operator.
CASES = [
    (layout, mode)
    for layout in LAYOUTS
    for mode in MODES
    if (layout, mode) != ("jagged", "inference")
]


@pytest.mark.parametrize(("layout", "mode"), CASES)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_layouts(operator: Operator, layout: str, mode: str) -> None:
    words = "dense, got a nested tensor" if layout in ("nested", "jagged") else "of layout strided"
    for label, sample in replaced(operator, LAYOUTS[layout]):
        with MODES[mode](), pytest.raises(RuntimeError) as error:
            operator.op(*sample.args, **sample.kwargs)
        start = f"fulgurite::{operator.name}: expected {label} {words}"
        assert str(error.value).startswith(start)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_dtypes(operator: Operator, dtype: str) -> None:
    for label, sample in replaced(operator, DTYPES[dtype]):
        with pytest.raises(TypeError, match=rf"fulgurite::{operator.name}: expected ") as error:
            operator.op(*sample.args, **sample.kwargs)
        assert label.split("[")[0] in str(error.value)


def test_gradients_that_are_recorded() -> None:
    """The internal operator that runs then is not named."""
    x, ids, weights = torch.ones(3, 4), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)
    w_in = torch.ones(2, 6, 4, requires_grad=True)
    w_out = torch.ones(2, 4, 3)
    with pytest.raises(RuntimeError, match="fulgurite::moe_experts: expected w_out of layout"):
        torch.ops.fulgurite.moe_experts(x, ids, weights, w_in, w_out.to_sparse())
