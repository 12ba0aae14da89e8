"""SAM's decomposed bias as extra width against the dense bias, gradients included."""

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F
from common_checks import DEVICE
from fulgurite.nn import decomposed_bias_inputs


def interpolated(table: Tensor, rows: int) -> Tensor:
    """Linear, samples at the centres of the new rows, one row at a time."""
    length = len(table)
    resized = []
    for row in range(rows):
        place = min(max((row + 0.5) * length / rows - 0.5, 0.0), length - 1.0)
        below = int(place)
        above = min(below + 1, length - 1)
        part = place - below
        resized.append((1 - part) * table[below] + part * table[above])
    return torch.stack(resized)


def dense_bias(
    query: Tensor, table_h: Tensor, table_w: Tensor, query_size: tuple[int, int],
    key_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """β of every pair, one at a time: (B, H, N, M)."""
    tables = [
        interpolated(table, 2 * max(q, k) - 1)
        for table, q, k in zip((table_h, table_w), query_size, key_size, strict=True)
    ]
    columns = []
    for j in range(key_size[0] * key_size[1]):
        entries = []
        for i in range(query_size[0] * query_size[1]):
            places = (divmod(i, query_size[1]), divmod(j, key_size[1]))
            entry = torch.zeros(query.shape[:2], dtype=query.dtype)
            for axis, table in enumerate(tables):
                q, k = query_size[axis], key_size[axis]
                stretch_q, stretch_k = max(k / q, 1), max(q / k, 1)
                row = places[0][axis] * stretch_q + (k - 1 - places[1][axis]) * stretch_k
                entry = entry + query[:, :, i] @ table[int(row + 1e-9)]
            entries.append(entry)
        columns.append(torch.stack(entries, -1))
    return torch.stack(columns, -1)


CASES = [
    # query size, key size, rows of the tables
    ((4, 4), (4, 4), (7, 7)),
    ((3, 5), (3, 5), (5, 9)),
    ((4, 3), (4, 3), (13, 4)),
    ((4, 3), (4, 3), (1, 2)),
    ((1, 6), (1, 6), (1, 11)),
    ((2, 6), (4, 3), (7, 11)),
    ((5, 4), (3, 6), (9, 11)),
]


@pytest.mark.parametrize(("query_size", "key_size", "rows"), CASES)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_attention_with_decomposed_bias(
    query_size: tuple[int, int],
    key_size: tuple[int, int],
    rows: tuple[int, int],
    scale: float | None,
    kv_heads: int,
) -> None:
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    queries, keys = query_size[0] * query_size[1], key_size[0] * key_size[1]
    query, key, value = (
        normal(2, 4, queries, 8),
        normal(2, kv_heads, keys, 8),
        normal(2, kv_heads, keys, 8),
    )
    table_h, table_w = normal(rows[0], 8), normal(rows[1], 8)
    query_plus, key_plus = decomposed_bias_inputs(
        query, key, table_h, table_w, query_size, key_size, scale
    )
    assert query_plus.shape[-1] == key_plus.shape[-1] == 8 + sum(key_size)
    out = F.attention(query_plus, key_plus, value, scale=1.0)

    bias = dense_bias(query, table_h, table_w, query_size, key_size)
    factor = 8**-0.5 if scale is None else scale
    group = 4 // kv_heads
    scores = query @ key.repeat_interleave(group, 1).transpose(-1, -2) * factor + bias
    expected = scores.softmax(-1) @ value.repeat_interleave(group, 1)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    wanted = [query, key, value, table_h, table_w]
    incoming = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, wanted, incoming),
        torch.autograd.grad(expected, wanted, incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_bias_alone_is_exact() -> None:
    """The one-hot columns pick elements: with scale 0 the product is rel_h + rel_w, bit by bit."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 12, 8)
    tables = torch.randn(5, 8), torch.randn(7, 8)
    query_plus, key_plus = decomposed_bias_inputs(query, key, *tables, (3, 4), scale=0.0)
    picked = query_plus @ key_plus.transpose(-1, -2)
    rel_h, rel_w = query_plus[..., 8:11], query_plus[..., 11:]
    for j in range(12):
        assert torch.equal(picked[..., j], rel_h[..., j // 4] + rel_w[..., j % 4])


def test_equal_sizes_are_the_default() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 12, 8)
    tables = torch.randn(5, 8), torch.randn(7, 8)
    for left, right in zip(
        decomposed_bias_inputs(query, key, *tables, (3, 4)),
        decomposed_bias_inputs(query, key, *tables, (3, 4), (3, 4), 8**-0.5),
        strict=True,
    ):
        assert torch.equal(left, right)
        assert left.is_contiguous()


def test_three_dims_and_16_bits() -> None:
    """SAM folds the heads into the batch; float32 tables serve a 16-bit query."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 12, 8).bfloat16()
    tables = torch.randn(5, 8), torch.randn(7, 8)
    query_plus, key_plus = decomposed_bias_inputs(query, key, *tables, (3, 4))
    assert query_plus.shape == key_plus.shape == (2, 12, 15)
    assert query_plus.dtype == key_plus.dtype == torch.bfloat16
    with torch.autocast(DEVICE.type, torch.bfloat16):
        inside, _ = decomposed_bias_inputs(query.float(), key.float(), *tables, (3, 4))
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.bfloat16(), query_plus, rtol=0.02, atol=0.02)


def test_scripted_and_compiled() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 12, 8)
    arguments = (query, key, torch.randn(5, 8), torch.randn(9, 8), (3, 4))
    expected = decomposed_bias_inputs(*arguments)
    for made in (
        torch.jit.script(decomposed_bias_inputs),
        torch.compile(decomposed_bias_inputs, fullgraph=True, backend="aot_eager"),
    ):
        for got, want in zip(made(*arguments), expected, strict=True):
            torch.testing.assert_close(got, want)


def test_errors() -> None:
    query, table_h, table_w = torch.randn(1, 2, 12, 8), torch.randn(5, 8), torch.randn(7, 8)
    name = "decomposed_bias_inputs"
    with pytest.raises(ValueError, match=rf"{name}: expected query of shape \[..., 16, D\]"):
        decomposed_bias_inputs(query, query, table_h, table_w, (4, 4))
    with pytest.raises(ValueError, match=rf"{name}: expected key of shape \[..., 4, 8\]"):
        decomposed_bias_inputs(query, query, table_h, table_w, (3, 4), (2, 2))
    with pytest.raises(
        ValueError, match=rf"{name}: expected tables of shape \[L, 8\], got \[5, 7\]"
    ):
        decomposed_bias_inputs(query, query, table_h[:, 1:], table_w, (3, 4))
    with pytest.raises(ValueError, match=rf"{name}: expected key of torch.float32, got .*float64"):
        decomposed_bias_inputs(query, query.double(), table_h, table_w, (3, 4))
    with pytest.raises(ValueError, match=rf"{name}: expected positive sizes, got \(0, 4\)"):
        decomposed_bias_inputs(query, query, table_h, table_w, (0, 4))
