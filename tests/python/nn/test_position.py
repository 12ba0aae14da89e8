"""ALiBi slopes, T5's relative bias and the log-n factor against loops and dense mathematics."""

import io
import math

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F
from fulgurite.nn import (
    RelativePositionBias,
    alibi_slopes,
    log_n_scale,
    relative_position_bucket,
)


def geometric(heads: int) -> list[float]:
    return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]


def slopes_of(heads: int) -> list[float]:
    """The authors' rule: a geometric sequence, filled up from the one of twice as many heads."""
    power = 1
    while 2 * power <= heads:
        power *= 2
    return geometric(power) + geometric(2 * power)[0::2][: heads - power]


def dense(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    return (query @ key.transpose(-1, -2) * scale + bias).softmax(-1) @ value


def inputs(heads: int, queries: int, keys: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(2, heads, length, 8, dtype=torch.float64, requires_grad=True)
        for length in (queries, keys, keys)
    ]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 16, 20, 40, 71])
def test_alibi_slopes(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert slopes.dtype == torch.float32
    torch.testing.assert_close(slopes, torch.tensor(slopes_of(heads)), rtol=1e-7, atol=0.0)


def test_alibi_is_a_dense_bias() -> None:
    query, key, value = inputs(6, 5, 9)
    slopes = alibi_slopes(6).double()
    distance = (torch.arange(5)[:, None] + 4 - torch.arange(9)).double()
    bias = -slopes[:, None, None] * distance.abs()
    bias = bias.masked_fill(distance < 0, -torch.inf)
    out = F.attention(query, key, value, alibi_slopes=slopes, causal=True)
    torch.testing.assert_close(out, dense(query, key, value, bias, 8**-0.5), rtol=1e-12, atol=1e-13)


def bucket_of(relative: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """The formula of the paper's code, one position at a time."""
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    steps = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    return first + min(exact + int(steps), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"),
    [(32, 128), (32, 64), (64, 256), (16, 20), (10, 30), (4, 2), (4, 3), (320, 800)],
)
def test_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> None:
    if not bidirectional and max_distance <= num_buckets // 2:
        max_distance = num_buckets
    relative = torch.arange(-1000, 1001)
    bucket = relative_position_bucket(relative, num_buckets, max_distance, bidirectional)
    expected = [bucket_of(int(r), num_buckets, max_distance, bidirectional) for r in relative]
    assert bucket.dtype == torch.int64
    assert bucket.tolist() == expected


def test_every_bucket_but_one_is_used() -> None:
    """All but the one of distance 0 ahead, which T5 leaves unused."""
    bucket = relative_position_bucket(torch.arange(-200, 201))
    assert sorted(set(bucket.tolist())) == [b for b in range(32) if b != 16]
    causal = relative_position_bucket(torch.arange(-200, 1), bidirectional=False)
    assert sorted(set(causal.tolist())) == list(range(32))


def test_buckets_of_any_shape_and_integer() -> None:
    relative = torch.arange(-6, 6).reshape(3, 4)
    expected = relative_position_bucket(relative)
    assert expected.shape == (3, 4)
    assert torch.equal(relative_position_bucket(relative.to(torch.int32)), expected)
    assert relative_position_bucket(relative[:0]).shape == (0, 4)


def expected_bias(module: RelativePositionBias, rows: int, columns: int, offset: int) -> Tensor:
    buckets, heads = module.weight.shape
    entries = [
        module.weight[bucket_of(j - i - offset, buckets, 128, module.bidirectional), head]
        for head in range(heads)
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.stack(entries).view(1, heads, rows, columns)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (3, 40), (40, 3), (1, 5), (5, 1)])
@pytest.mark.parametrize("offset", [None, 0, 11])
def test_bias(rows: int, columns: int, offset: int | None, bidirectional: bool) -> None:
    torch.manual_seed(0)
    module = RelativePositionBias(3, bidirectional=bidirectional, dtype=torch.float64)
    bias = module(rows, columns, offset)
    expected = expected_bias(module, rows, columns, columns - rows if offset is None else offset)
    assert bias.is_contiguous()
    assert torch.equal(bias, expected)
    incoming = torch.randn_like(bias)
    (got,) = torch.autograd.grad(bias, module.weight, incoming)
    (want,) = torch.autograd.grad(expected, module.weight, incoming)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0), (0, 0)])
def test_bias_of_nothing(rows: int, columns: int) -> None:
    module = RelativePositionBias(2)
    bias = module(rows, columns)
    assert bias.shape == (1, 2, rows, columns)
    bias.sum().backward()
    assert not module.weight.grad.any()


def test_bias_in_attention() -> None:
    query, key, value = inputs(4, 6, 10)
    module = RelativePositionBias(4, bidirectional=False, dtype=torch.float64)
    later = torch.arange(10) > torch.arange(6)[:, None] + 4
    bias = expected_bias(module, 6, 10, 4).masked_fill(later, -torch.inf)
    out = F.attention(query, key, value, bias=module(6, 10), causal=True, scale=1.0)
    expected = dense(query, key, value, bias, 1.0)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    wanted = [query, key, value, module.weight]
    incoming = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, wanted, incoming),
        torch.autograd.grad(expected, wanted, incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_a_slice_of_a_longer_bias_is_the_bias_of_decoding() -> None:
    module = RelativePositionBias(2, bidirectional=False)
    assert torch.equal(module(1, 30), module(30, 30)[:, :, 29:])
    assert torch.equal(module(1, 64, 29)[..., :30], module(1, 30))


def test_module_scripted_saved_loaded_compiled() -> None:
    module = RelativePositionBias(2)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for made in (torch.jit.load(file), compiled):
        assert torch.equal(made(5, 9), module(5, 9))
        assert torch.equal(made(4, 6, 1), module(4, 6, 1))
    assert list(module.state_dict()) == ["weight"]


@pytest.mark.parametrize("start", [0, 5])
def test_log_n(start: int) -> None:
    scale = log_n_scale(40, 16, start=start)
    expected = [max(1.0, math.log(i + 1) / math.log(16)) for i in range(start, start + 40)]
    assert scale.shape == (40, 1)
    assert torch.equal(scale[:, 0], torch.tensor(expected, dtype=torch.float32))
    assert (scale[: 16 - start] == 1.0).all()
    assert scale[16 - start] > 1.0


def test_log_n_scales_the_scores() -> None:
    """With one kept key of score s, lse is scale·s."""
    query, key, value = inputs(1, 20, 20)
    scale = log_n_scale(20, 4).double()
    _, lse = F.attention(query * scale, key, value, causal=True, window_left=0, return_lse=True)
    score = (query * key).sum(-1) * 8**-0.5
    torch.testing.assert_close(lse, score * scale[:, 0], rtol=1e-12, atol=1e-13)


def test_errors() -> None:
    with pytest.raises(ValueError, match="alibi_slopes: expected num_heads of at least 1, got 0"):
        alibi_slopes(0)
    with pytest.raises(ValueError, match="log_n_scale: expected trained_length of at least 2"):
        log_n_scale(4, 1)
    with pytest.raises(ValueError, match="log_n_scale: expected start of at least 0, got -1"):
        log_n_scale(4, 8, start=-1)
    name = "relative_position_bucket"
    relative = torch.arange(3)
    with pytest.raises(ValueError, match=f"{name}: expected integer positions, got torch.float32"):
        relative_position_bucket(relative.float())
    with pytest.raises(ValueError, match=f"{name}: expected an even num_buckets .* got 7"):
        relative_position_bucket(relative, 7)
    with pytest.raises(ValueError, match="num_buckets of at least 2, got 1"):
        relative_position_bucket(relative, 1, bidirectional=False)
    with pytest.raises(ValueError, match="max_distance above 8 for 32 buckets, got 8"):
        relative_position_bucket(relative, max_distance=8)
    with pytest.raises(ValueError, match="RelativePositionBias: expected num_heads"):
        RelativePositionBias(0)
    with pytest.raises(ValueError, match="RelativePositionBias: expected an even num_buckets"):
        RelativePositionBias(2, 3)
