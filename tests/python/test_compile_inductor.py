"""torch.compile(fullgraph=True) with inductor: once per family, and a block that uses all of them.

Compiling takes tens of seconds a case; what does not need generated code is checked with the
aot_eager backend for every operator instead.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, backend="inductor")


def assert_same_training_step(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Value and gradients, compiled against eager.

    Inductor fuses what is between the operators and may round there differently.
    """

    def step(run: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        out = run(*leaves)
        out.sum().backward()
        return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]

    expected, actual = step(function), step(compiled(function))
    assert len(expected) == 1 + sum(x.is_floating_point() for x in inputs)
    torch.testing.assert_close(actual, expected)


def test_attention_family() -> None:
    angle = torch.arange(40)[:, None] * 10000.0 ** -(torch.arange(8) / 8)
    cos, sin = angle.cos(), angle.sin()

    def mixed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = F.rope(query, cos, sin), F.rope(key, cos, sin)
        out, lse = F.attention(query, key, value, causal=True, window_left=9, return_lse=True)
        return torch.nn.functional.gelu(out * 2) + lse.exp()[..., None]

    assert_same_training_step(
        mixed, torch.randn(2, 4, 40, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    )
