"""What is drawn in a compiled forward is what its backward uses, however much that recomputes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._functorch.config
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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


def check_gradients(function: Callable[[Tensor], Tensor], run: Callable[[Tensor], Tensor]) -> None:
    """``run``, the compiled function, differentiates the draw that its output shows."""
    x = torch.eye(N)[None, None] if function is dropped else torch.rand(1, 1, N, N) + 0.1
    x.requires_grad_()
    out = run(x)
    grad = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, x, grad)
    x, out = x.detach(), out.detach()
    drawn, slope = linear_map(function, x, out), 1 - x.tanh() ** 2
    expected = drawn.T @ grad[0, 0] * slope[0, 0] if function is dropped else grad * drawn * slope
    torch.testing.assert_close(got.view_as(expected), expected)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("budget", [0.0, 0.01])
@pytest.mark.parametrize("function", [dropped, noisy, second_at_random])
def test_recomputed_activations_keep_the_draw(
    function: Callable[[Tensor], Tensor], budget: float, compiler: str
) -> None:
    torch._dynamo.reset()
    with torch._functorch.config.patch(activation_memory_budget=budget):
        check_gradients(function, torch.compile(function, backend=compiler, fullgraph=True))


@pytest.mark.skipif(
    not hasattr(torch.autograd.graph, "region_activation_memory_budget"),
    reason="this torch knows budgets of whole graphs only",
)
@pytest.mark.parametrize("function", [dropped, noisy, second_at_random])
def test_a_region_with_a_budget_of_its_own_keeps_the_draw(
    function: Callable[[Tensor], Tensor],
) -> None:
    def in_region(x: Tensor) -> Tensor:
        with torch.autograd.graph.region_activation_memory_budget(0.0):
            return function(x)

    torch._dynamo.reset()
    check_gradients(function, torch.compile(in_region, backend="aot_eager", fullgraph=True))


@pytest.mark.parametrize("budget", [0.0, 0.01])
def test_a_draw_that_a_checkpointed_region_reads_is_kept(budget: float) -> None:
    def through_checkpoint(x: Tensor) -> Tensor:
        return checkpoint(torch.sinh, noisy(x), use_reentrant=False).asinh()

    torch._dynamo.reset()
    with torch._functorch.config.patch(activation_memory_budget=budget):
        check_gradients(noisy, torch.compile(through_checkpoint, backend="aot_eager"))


def test_a_budget_of_nothing_without_a_backward() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(dropped, backend="aot_eager", fullgraph=True)
    x = torch.eye(N)[None, None]
    with torch._functorch.config.patch(activation_memory_budget=0):
        assert compiled(x).shape == x.shape
        with torch.no_grad():
            assert compiled(x.requires_grad_()).shape == x.shape


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
