"""A C++ program without Python computes what Python computes, bit for bit."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fulgurite.nn.functional as F
from fulgurite.nn import Attention, MoE, RMSNorm, rotary_table

pytestmark = pytest.mark.slow
ops = torch.ops.fulgurite


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert torch.equal(actual[name], value), name


class Block(nn.Module):
    """A decoder layer of fulgurite's own modules, and its loss."""

    def __init__(self, width: int = 32, heads: int = 4, length: int = 24) -> None:
        super().__init__()
        self.attention_norm, self.moe_norm = RMSNorm(width), RMSNorm(width)
        self.filters = nn.Parameter(torch.randn(width, 4) / 2)
        self.rates = nn.Parameter(-torch.rand(4))
        self.attention = Attention(width, heads, num_kv_heads=2, window=8)
        self.moe = MoE(
            width,
            hidden_dim=24,
            num_experts=8,
            top_k=2,
            num_shared_experts=1,
            score="sigmoid",
            bias_update_rate=1e-3,
            balance_loss_weight=1e-2,
            z_loss_weight=1e-3,
        )
        cos, sin = rotary_table(length, width // heads)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def features(self, x: Tensor) -> Tensor:
        mixed, _ = F.causal_conv1d(x.transpose(1, 2), self.filters, activation="silu")
        x = x + mixed.transpose(1, 2)
        heads = x.unflatten(-1, (4, -1)).transpose(1, 2)
        mixed, _, _ = F.linear_attention(heads, heads, heads, self.rates, normalize=True, eps=9.0)
        x = x + mixed.transpose(1, 2).flatten(2)
        x = x + self.attention(self.attention_norm(x), self.cos, self.sin)
        return x + self.moe(self.moe_norm(x))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.features(x), target) + self.moe.aux_loss

    @torch.jit.export
    def finish_step(self) -> Tensor:
        self.moe.update_bias()
        bias = self.moe.selection_bias
        assert bias is not None
        return bias


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block.features(x)


def train_step(module: nn.Module, x: Tensor, target: Tensor, hyper: Tensor) -> dict[str, Tensor]:
    """What the program's `train` does."""
    loss = module(x, target)
    loss.backward()
    parameters = list(module.parameters())
    grads = [parameter.grad for parameter in parameters]
    with torch.no_grad():
        found_inf, norm_sq, _ = ops.grad_stats(grads)
        ops.adamw_(
            *(parameters, grads),
            *([torch.zeros_like(p) for p in parameters] for _ in range(2)),
            *([] for _ in range(4)),
            *([torch.zeros(()) for _ in parameters], hyper, [0] * len(parameters)),
            grad_multiplier=ops.clip_multiplier(norm_sq, 1.0),
            found_inf=found_inf,
        )
    bias = module.finish_step()
    state = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return {"loss": loss.detach(), "norm_sq": norm_sq, "bias": bias, **state}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_public_headers_with_gradients(consumer, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 33, 16, dtype=dtype)
    key, value = torch.randn(2, 2, 2, 33, 16, dtype=dtype)
    cos, sin = rotary_table(33, 16)
    inputs = {"query": query, "key": key, "value": value, "cos": cos, "sin": sin}
    inputs |= {"grad_out": torch.randn_like(query), "grad_lse": torch.randn(2, 4, 33)}
    actual = consumer("attention", inputs=inputs)

    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    out, lse = F.attention(
        F.rope(leaves[0], cos, sin), *leaves[1:], causal=True, window_left=7, return_lse=True
    )
    torch.autograd.backward([out, lse], [inputs["grad_out"], inputs["grad_lse"]])
    expected = {"out": out.detach(), "lse": lse.detach()}
    expected |= {
        f"grad_{n}": x.grad for n, x in zip(("query", "key", "value"), leaves, strict=True)
    }
    assert_same_bits(actual, expected)


def test_scripted_module_trains_one_step(consumer, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "block.pt"
    block = Block()
    torch.jit.script(block).save(path)
    x, target = torch.randn(2, 2, 24, 32)
    hyper = torch.tensor([[1e-2, 0.9, 0.95, 1e-8, 0.1, 0.0]], dtype=torch.float64)
    inputs = {"x": x, "target": target, "hyper": hyper}

    actual = consumer("train", path, inputs=inputs)
    assert_same_bits(actual, train_step(torch.jit.load(path), **inputs))
    assert actual["bias"].count_nonzero() > 0
    for name, before in block.named_parameters():
        assert not torch.equal(actual[name], before), name

    # Eager PyTorch may round elsewhere than TorchScript's interpreter.
    torch.testing.assert_close(actual["loss"], train_step(block, **inputs)["loss"])


def test_aot_inductor_package_runs(consumer, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, x = Features().eval(), torch.randn(2, 24, 32)
    with torch.no_grad():
        expected = model(x)
        exported = torch.export.export(model, (x,))
        path = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(tmp_path / "model.pt2")
        )
        in_python = torch._inductor.aoti_load_package(path)(x)
    torch.testing.assert_close(in_python, expected)
    assert torch.equal(consumer("package", path, inputs={"x": x})["out"], in_python)


def test_program_has_no_python(consumer_program: Path) -> None:
    listed = subprocess.run(["ldd", consumer_program], capture_output=True, text=True, check=True)
    assert "libfulgurite.so" in listed.stdout
    assert not re.search("libpython|libtorch_python", listed.stdout)
