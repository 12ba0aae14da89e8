"""Sizes that compilers do not know: windows computed from them, and batches that data decides."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import fulgurite.nn.functional as F

HQ, HKV, N, D = 4, 1, 5, 8


def test_windows_of_a_size_compile_once() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def windowed(x: Tensor) -> Tensor:
        n = x.size(2)
        whole = F.attention(x, x, x, window_left=n // 2, window_right=n // 4, sink_tokens=n // 8)
        return whole + F.attention(x, x, x, causal=True, chunk_size=n // 2)

    compiled = torch.compile(windowed, backend=counter, dynamic=True, fullgraph=True)
    counts = []
    for n in (16, 24, 40, 9):
        x = torch.randn(1, 2, n, D, dtype=torch.float64, requires_grad=True)
        expected = windowed(x)
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(
            torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(expected.sum(), x)
        )
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1, counts


class Selected(nn.Module):
    """Attention of the rows that a mask picks."""

    def __init__(self, extra: str) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor, chosen: Tensor, numbers: Tensor) -> Tensor:
        query, key, value = x[chosen].split([HQ, HKV, HKV], 1)
        picked = numbers[chosen]
        rows = picked[:, None, None, :]
        if self.extra == "mask":
            return F.attention(query, key, value, mask=rows > 0)
        if self.extra == "bias":
            return F.attention(query, key, value, bias=rows)
        if self.extra == "slopes":
            return F.attention(query, key, value, alibi_slopes=picked[:, :HQ].abs())
        if self.extra == "rope":
            table = picked[:, None, :, None].expand(-1, 1, -1, D // 2)
            return F.rope(query, table, table)
        return F.attention(query, key, value)


@pytest.mark.parametrize("extra", ["none", "mask", "bias", "slopes", "rope"])
def test_a_batch_that_data_decides_is_exported(extra: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, HQ + 2 * HKV, N, D, generator=generator)
    numbers = torch.randn(6, N, generator=generator)
    chosen = torch.tensor([True, False, True, True, False, False])
    program = torch.export.export(Selected(extra), (x, chosen, numbers)).module()
    for picked in (chosen, chosen.roll(1) & chosen, torch.zeros(6, dtype=torch.bool)):
        expected = Selected(extra)(x, picked, numbers)
        torch.testing.assert_close(program(x, picked, numbers), expected, rtol=0, atol=0)


class Unbatched(nn.Module):
    """Attention of 3, 4 or 5 dimensions, the first of which a mask picks: heads or a batch."""

    def __init__(self, dims: int, extra: str) -> None:
        super().__init__()
        self.dims, self.extra = dims, extra

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        y = x[chosen]  # (u, N, D)
        rows = y.sum(-1)  # (u, N)
        if self.dims == 4:
            y = y[:, None].expand(-1, HQ, -1, -1)
            rows = rows[:, None, None, :]
        elif self.dims == 5:
            y = y[:, None, None].expand(-1, 3, HQ, -1, -1)
            rows = rows[:, None, None, None, :]
        else:
            rows = rows[:, None, :]
        if self.extra == "mask":
            return F.attention(y, y, y, mask=rows > 0)
        if self.extra == "bias":
            return F.attention(y, y, y, bias=rows)
        if self.extra == "shared bias":
            return F.attention(y, y, y, bias=torch.ones([1, *rows.shape[1:]]))
        if self.extra == "slopes":
            return F.attention(y, y, y, alibi_slopes=y[..., 0, 0].abs())
        return F.attention(y, y, y)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("extra", ["none", "mask", "bias", "shared bias", "slopes"])
@pytest.mark.parametrize("dims", [3, 4, 5])
def test_sizes_that_data_decides_of_all_dimensions(dims: int, extra: str, strict: bool) -> None:
    x = torch.randn(6, N, D, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([True, False, True, True, False, False])
    module = Unbatched(dims, extra)
    program = torch.export.export(module, (x, chosen), strict=strict).module()
    for picked in (chosen, chosen.roll(1) & chosen):
        expected = module(x, picked)
        torch.testing.assert_close(program(x, picked), expected, rtol=0, atol=0)


def test_batches_that_data_decides_apart_are_equal_when_the_program_runs() -> None:
    class Apart(nn.Module):
        def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
            query, key = x[first], x[second]
            return F.attention(query[:, None], key[:, None], key[:, None])

    x = torch.randn(6, N, D)
    first = torch.tensor([True, False, True, True, False, False])
    program = torch.export.export(Apart(), (x, first, ~first)).module()
    torch.testing.assert_close(program(x, first, ~first), Apart()(x, first, ~first))
    with pytest.raises(RuntimeError, match="Eq"):
        program(x, first, torch.ones(6, dtype=torch.bool))
