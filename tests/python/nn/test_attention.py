"""fulgurite.nn.Attention against the same mathematics written out in float64."""

import pytest
import torch
from torch import Tensor, nn

from common_checks import DEVICE
from fulgurite.nn import Attention, rotary_table


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.shape[-1]
    first, second = x[..., :width].chunk(2, -1)
    turned = [first * cos - second * sin, second * cos + first * sin, x[..., width:]]
    return torch.cat(turned, -1)


def reference(module: Attention, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """Every head by itself, the scores as one matrix."""
    batch, length, _ = x.shape
    heads, kv_heads, dim = module.num_heads, module.num_kv_heads, module.head_dim
    projected = (x @ module.qkv.weight.T).view(batch, length, -1, dim)
    outs = []
    for head in range(heads):
        kv_head = head // (heads // kv_heads)
        query = projected[:, :, head]
        key = projected[:, :, heads + kv_head]
        value = projected[:, :, heads + kv_heads + kv_head]
        if module.qk_norm:
            query, key = rms(query, module.q_norm.weight), rms(key, module.k_norm.weight)
        if cos is not None and sin is not None:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        distance = torch.arange(length)[:, None] - torch.arange(length)
        hidden = torch.zeros(length, length, dtype=torch.bool)
        if module.causal:
            hidden |= distance < 0
        if module.window_left >= 0:
            hidden |= distance > module.window_left
            if not module.causal:
                hidden |= -distance > module.window_left
        scores = query @ key.transpose(1, 2) * dim**-0.5
        outs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value)
    return torch.cat(outs, -1) @ module.out.weight.T


@pytest.mark.parametrize(
    ("kv_heads", "causal", "window", "qk_norm", "rotated"),
    [
        (4, True, -1, False, 8),
        (2, True, 3, False, 8),
        (1, True, 0, True, 4),
        (2, False, -1, True, 0),
        (2, False, 2, False, 8),
    ],
)
def test_output_and_gradients(
    kv_heads: int, causal: bool, window: int, qk_norm: bool, rotated: int
) -> None:
    torch.manual_seed(0)
    module = Attention(
        24, 4, kv_heads, head_dim=8, causal=causal, window=window, qk_norm=qk_norm
    ).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    cos = sin = None
    if rotated:
        cos, sin = (table.double() for table in rotary_table(9, rotated))
    out, expected = module(x, cos, sin), reference(module, x, cos, sin)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    wanted = [x, *module.parameters()]
    incoming = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, wanted, incoming),
        torch.autograd.grad(expected, wanted, incoming),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_mask_hides_keys() -> None:
    torch.manual_seed(0)
    module = Attention(16, 2, causal=False)
    x = torch.randn(1, 6, 16)
    mask = torch.arange(6) < 4
    changed = x.clone()
    changed[:, 4:] = torch.randn(1, 2, 16)
    assert torch.equal(module(x, mask=mask)[:, :4], module(changed, mask=mask)[:, :4])
    assert not torch.equal(module(x)[:, :4], module(changed)[:, :4])


def test_causal_window_sees_no_further() -> None:
    torch.manual_seed(0)
    module = Attention(16, 2, window=2)
    x = torch.randn(1, 8, 16)
    changed = x.clone()
    changed[:, 3] += 1.0
    same = (module(x) == module(changed)).all(-1)[0]
    assert same.tolist() == [True, True, True, False, False, False, True, True]


def test_qk_norm_under_autocast_rounds_once(recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    module = Attention(16, 2, qk_norm=True)
    x = torch.randn(2, 5, 16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out = module(x)
        normed = module.q_norm(x[..., :8].bfloat16())
    assert out.dtype == torch.bfloat16
    assert not recwarn.list
    expected = nn.functional.rms_norm(x[..., :8].bfloat16().float(), [8], eps=1e-6)
    assert torch.equal(normed, expected.bfloat16())


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("window", [-1, 3])
def test_decoding_step_by_step_equals_one_call(window: int, scripted: bool) -> None:
    torch.manual_seed(0)
    module = Attention(32, 4, 2, window=window, qk_norm=True)
    steps = torch.jit.script(module) if scripted else module
    x = torch.randn(2, 12, 32)
    cos, sin = rotary_table(12, 8)
    with torch.no_grad():
        whole = module(x, cos, sin)
        keys, values, lengths = steps.make_cache(2, 16)
        for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
            out = steps.decode(x[:, part], keys, values, lengths, cos[part], sin[part])
            torch.testing.assert_close(out, whole[:, part])
    assert lengths.tolist() == [12, 12]
    assert (keys[:, :, 12:] == 0).all()


def test_decoding_sequences_of_different_lengths() -> None:
    torch.manual_seed(0)
    module = Attention(16, 2)
    x = torch.randn(2, 9, 16)
    cos, sin = rotary_table(9, 8)
    with torch.no_grad():
        whole = module(x, cos, sin)
        keys, values, lengths = module.make_cache(2, 9)
        for b, cached in enumerate((8, 3)):
            alone = [t[b : b + 1] for t in (keys, values, lengths)]
            module.decode(x[b : b + 1, :cached], *alone, cos[:cached], sin[:cached])
        new = torch.stack([x[0, 8:9], x[1, 3:4]])
        at = lengths[:, None, None]
        out = module.decode(new, keys, values, lengths, cos[at], sin[at])
    torch.testing.assert_close(out[0, 0], whole[0, 8])
    torch.testing.assert_close(out[1, 0], whole[1, 3])


def test_decoding_refuses_what_it_cannot_do() -> None:
    module = Attention(16, 2)
    keys, values, lengths = module.make_cache(1, 4)
    with torch.no_grad(), pytest.raises(RuntimeError, match="room for 5 keys in the cache, got 4"):
        module.decode(torch.randn(1, 5, 16), keys, values, lengths)
    assert lengths.item() == 0
    with pytest.raises(ValueError, match="causal=True for decode"):
        Attention(16, 2, causal=False).decode(torch.randn(1, 1, 16), keys, values, lengths)


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_kv_heads to divide num_heads, got 3 and 4"):
        Attention(16, 4, 3)
    with pytest.raises(ValueError, match="num_heads to divide dim, got 3 and 16"):
        Attention(16, 3)
    with pytest.raises(ValueError, match="window of at least -1, got -2"):
        Attention(16, 4, window=-2)
    cos, _ = rotary_table(4, 4)
    with pytest.raises(ValueError, match="both cos and sin"):
        Attention(16, 4)(torch.randn(1, 4, 16), cos)
