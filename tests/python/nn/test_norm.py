"""nn.RMSNorm beside torch's module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fulgurite.nn import RMSNorm


def both(*shape: int, eps: float | None = None) -> tuple[RMSNorm, nn.RMSNorm]:
    ours, plain = RMSNorm(shape, eps), nn.RMSNorm(shape, eps)
    with torch.no_grad():
        plain.weight.copy_(torch.rand(shape))
    ours.load_state_dict(plain.state_dict())
    return ours, plain


def outcome(norm: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    out = norm(x)
    return out, *torch.autograd.grad(out.square().sum(), [x, *norm.parameters()])


@pytest.mark.parametrize("shape", [(12,), (3, 4)])
@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_the_module_of_torch(
    shape: tuple[int, ...], eps: float | None, dtype: torch.dtype
) -> None:
    ours, plain = both(*shape, eps=eps)
    # Near 0 the default eps shows.
    for size in (1.0, 1e-4):
        x = torch.randn(5, 2, *shape, dtype=dtype) * size
        for a, b in zip(outcome(ours.to(dtype), x), outcome(plain.to(dtype), x), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weight", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dtypes_may_differ(dtype: torch.dtype, weight: torch.dtype) -> None:
    ours, _ = both(20)
    x = torch.randn(4, 20).to(dtype)
    ours = ours.to(weight)
    out, of_x, of_weight = outcome(ours, x)
    assert (out.dtype, of_x.dtype, of_weight.dtype) == (dtype, dtype, weight)
    exact = x.double() * x.double().square().mean(-1, keepdim=True).rsqrt()
    torch.testing.assert_close(out, (exact * ours.weight.double()).to(dtype))


def test_another_shape_raises() -> None:
    with pytest.raises(RuntimeError, match=r"RMSNorm: expected x of shape \[\.\.\., 3, 4\]"):
        RMSNorm((3, 4))(torch.randn(4, 3))
    with pytest.raises(RuntimeError, match=r"rms_norm: expected weight of shape \[5\]"):
        RMSNorm(4)(torch.randn(3, 5))


@pytest.mark.parametrize("shape", [(12,), (3, 4)])
def test_scripted(shape: tuple[int, ...]) -> None:
    ours, _ = both(*shape)
    x = torch.randn(5, *shape)
    assert torch.equal(torch.jit.script(ours)(x), ours(x))
