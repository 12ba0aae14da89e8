"""A decoder block of every family, scripted and compiled: same numbers, same gradients."""

import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fulgurite.nn import Attention, MoE, rotary_table


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(32), nn.RMSNorm(32)
        self.attention = Attention(32, 4, 2, window=5, qk_norm=True)
        self.moe = MoE(
            32,
            16,
            8,
            2,
            num_shared_experts=1,
            score="sigmoid",
            bias_update_rate=0.01,
            balance_loss_weight=0.01,
            z_loss_weight=0.001,
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.moe(self.norm2(x))


def results(block: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, auxiliary loss, gradients, load and moved bias of one training step's passes."""
    block.zero_grad()
    x = x.detach().requires_grad_()
    y = block(x, *rotary_table(x.shape[1], 8))
    (y.square().mean() + block.moe.aux_loss).backward()
    gradients = [parameter.grad for parameter in block.parameters()]
    load = block.moe.load.clone()
    block.moe.update_bias()
    return [y.detach(), block.moe.aux_loss.detach(), x.grad, *gradients, load]


def fresh() -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return Block(), torch.randn(2, 11, 32)


def assert_same(make: Callable[[Block], nn.Module]) -> None:
    block, x = fresh()
    expected = [results(block, x), results(block, x)]  # the second time with a moved bias
    block, x = fresh()
    made = make(block)
    for want in expected:
        for got, value in zip(results(made, x), want, strict=True):
            torch.testing.assert_close(got, value, rtol=2e-5, atol=2e-6)


def test_scripted() -> None:
    assert_same(torch.jit.script)


def test_scripted_saved_and_loaded() -> None:
    def through_a_file(block: Block) -> nn.Module:
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(block), file)
        file.seek(0)
        return torch.jit.load(file)

    assert_same(through_a_file)


def test_compiled() -> None:
    """With inductor: test_compile_inductor.py."""
    assert_same(lambda block: torch.compile(block, fullgraph=True, backend="aot_eager"))


def test_compiled_with_dynamic_sizes() -> None:
    block, _ = fresh()
    compiled = torch.compile(block.eval(), fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (3, 11, 17):
        x = torch.randn(1, length, 32)
        table = rotary_table(length, 8)
        torch.testing.assert_close(compiled(x, *table), block(x, *table))


def test_exported() -> None:
    block, x = fresh()
    arguments = (x, *rotary_table(11, 8))
    exported = torch.export.export(block.eval(), arguments)
    torch.testing.assert_close(exported.module()(*arguments), block(*arguments))


def test_compiled_optimizer_pipeline() -> None:
    """Gradient statistics, clipping, the step and the scale update, in one graph."""

    def step(
        weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, count: Tensor, scale: Tensor
    ) -> Tensor:
        inverse = scale.reciprocal()
        found, norm_sq, _ = torch.ops.fulgurite.grad_stats([grad], inv_scale=inverse)
        multiplier = torch.ops.fulgurite.clip_multiplier(norm_sq, 1.0, inv_scale=inverse)
        hyper = torch.tensor([[1e-2, 0.9, 0.95, 1e-8, 0.1, 0.0]], dtype=torch.float64)
        torch.ops.fulgurite.adamw_(
            [weight], [grad], [m], [v], [], [], [], [], [count], hyper, [0],
            grad_multiplier=multiplier, found_inf=found,
        )  # fmt: skip
        return norm_sq

    def arguments() -> list[Tensor]:
        torch.manual_seed(0)
        weight, grad = torch.randn(5, 7), 1e3 * torch.randn(5, 7)
        zeros = torch.zeros(5, 7)
        return [weight, grad, zeros, zeros.clone(), torch.zeros(()), torch.tensor(1024.0)]

    eager, compiled = arguments(), arguments()
    expected = step(*eager)
    norm_sq = torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    torch.testing.assert_close(norm_sq, expected)
    for got, want in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, want)
    assert not torch.equal(eager[0], arguments()[0])
