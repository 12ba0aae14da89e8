"""A C++ program without Python computes what Python computes, bit for bit."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fulgurite.nn.functional as F

pytestmark = pytest.mark.slow


def rotary_tables(length: int, half: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(half) / half)
    return angle.cos(), angle.sin()


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert torch.equal(actual[name], value), name


class Block(nn.Module):
    """Attention with rotary positions between two projections, and its loss."""

    def __init__(self, width: int = 32, heads: int = 4, length: int = 24) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        cos, sin = rotary_tables(length, width // heads // 2)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def features(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, [3, self.heads, -1])
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = F.rope(q, self.cos, self.sin)
        k = F.rope(k, self.cos, self.sin)
        mixed = F.attention(q, k, v, causal=True, window_left=8)
        return x + self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.features(x), target)


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block.features(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_public_headers_with_gradients(consumer, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 33, 16, dtype=dtype)
    key, value = torch.randn(2, 2, 2, 33, 16, dtype=dtype)
    cos, sin = rotary_tables(33, 8)
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
    block = Block()
    torch.jit.script(block).save(tmp_path / "block.pt")
    x, target = torch.randn(2, 2, 24, 32)
    inputs = {"x": x, "target": target, "rate": torch.tensor(0.5, dtype=torch.float64)}
    actual = consumer("train", tmp_path / "block.pt", inputs=inputs)

    before = copy.deepcopy(block.state_dict())
    loss = block(x, target)
    loss.backward()
    expected = {"loss": loss.detach()}
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=-0.5)
            assert not torch.equal(parameter, before[name])
            expected[name] = parameter.detach()
    assert_same_bits(actual, expected)


def test_aot_inductor_package_runs(consumer, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, x = Features(), torch.randn(2, 24, 32)
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
