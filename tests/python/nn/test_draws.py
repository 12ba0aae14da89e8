"""What is drawn in a compiled forward is what its backward uses, however much that recomputes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._functorch.config
from torch import Tensor

import fulgurite.nn.functional as F
from fulgurite.nn.router import draw_second, jittered

N, D = 32, 16


def dropped(x: Tensor) -> Tensor:
    """Queries of 0: the attention is linear in x."""
    zero = torch.zeros(1, 1, N, D)
    return F.attention(zero, zero, x.tanh(), dropout_p=0.5)


def noisy(x: Tensor) -> Tensor:
    return jittered(x.tanh(), 0.5)


def second_at_random(x: Tensor) -> Tensor:
    first = torch.ones_like(x)
    return draw_second(torch.stack([first, x.tanh()], -1).view(-1, 2), _ids(x))[0][:, 1].view_as(x)


def _ids(x: Tensor) -> Tensor:
    return torch.zeros(x.numel(), 2, dtype=torch.int64)


def linear_map(function: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> Tensor:
    """out = M·tanh(x) with x the identity matrix scaled: what M of this draw was, read off out."""
    if function is dropped:
        return out[0, 0] / x[0, 0].diagonal().tanh()
    return out / x.tanh()


# The second partitions and decomposes as inductor does.
COMPILERS = ["aot_eager", "aot_eager_decomp_partition"]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("function", [dropped, noisy, second_at_random])
def test_recomputed_activations_keep_the_draw(
    function: Callable[[Tensor], Tensor], compiler: str
) -> None:
    torch._dynamo.reset()
    x = torch.eye(N)[None, None] if function is dropped else torch.rand(1, 1, N, N) + 0.1
    x.requires_grad_()
    with torch._functorch.config.patch(activation_memory_budget=0.01):
        out = torch.compile(function, backend=compiler, fullgraph=True)(x)
        grad = torch.randn_like(out)
        (got,) = torch.autograd.grad(out, x, grad)
    x, out = x.detach(), out.detach()
    drawn, slope = linear_map(function, x, out), 1 - x.tanh() ** 2
    expected = drawn.T @ grad[0, 0] * slope[0, 0] if function is dropped else grad * drawn * slope
    torch.testing.assert_close(got.view_as(expected), expected)


def test_a_budget_of_nothing_is_refused() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(dropped, backend="aot_eager")
    x = torch.eye(N)[None, None].requires_grad_()
    with torch._functorch.config.patch(activation_memory_budget=0):
        with pytest.raises(Exception, match=r"activation_memory_budget > 0 .* philox"):
            compiled(x)
        with torch.no_grad():
            assert compiled(x).shape == x.shape


def test_a_draw_is_torchs_own() -> None:
    """Eager code draws what ``rand_like`` does, so that seeds go on meaning what they meant."""
    zero, value = torch.zeros(1, 1, N, D), torch.eye(N)[None, None]
    torch.manual_seed(3)
    philox = (torch.rand(2, dtype=torch.float64) * 2.0**53).long()
    torch.manual_seed(3)
    assert torch.equal(
        F.attention(zero, zero, value, dropout_p=0.5),
        F.attention(zero, zero, value, dropout_p=0.5, philox=philox),
    )
