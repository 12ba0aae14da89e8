"""The attention function of transformers' interface: what each argument means, and what raises.

No model here: the expected numbers are a softmax over explicit scores.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fulgurite.integrations.transformers.attention import attention

B, Hq, Hkv, N, M, D, Dv = 2, 4, 2, 5, 8, 6, 3
PLAIN = SimpleNamespace()
ENCODER = SimpleNamespace(is_causal=False)
FLASH = SimpleNamespace(config=SimpleNamespace(_attn_implementation="fulgurite_flash"))


def inputs(n: int = N, m: int = N, b: int = B) -> tuple[Tensor, Tensor, Tensor]:
    """Transposed views, like a model's."""
    shapes = ((b, n, Hq, D), (b, m, Hkv, D), (b, m, Hkv, Dv))
    made = (torch.randn(shape, dtype=torch.float64).transpose(1, 2) for shape in shapes)
    query, key, value = (x.requires_grad_() for x in made)
    return query, key, value


def plain(
    qkv: tuple[Tensor, Tensor, Tensor],
    keep: Tensor | None = None,
    bias: Tensor | float = 0.0,
    scale: float = D**-0.5,
    sink: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    query, key, value = qkv
    key, value = (x.repeat_interleave(Hq // Hkv, 1) for x in (key, value))
    scores = scale * query @ key.mT
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores + bias
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    logits = scores
    if sink is not None:
        logits = torch.cat([scores, sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    weights = logits.softmax(-1)[..., : key.shape[2]].nan_to_num()
    return (weights @ value).transpose(1, 2)


def causal(n: int, m: int, offset: int = 0, window: int = 10**6) -> Tensor:
    distance = torch.arange(n)[:, None] + offset - torch.arange(m)
    return (distance >= 0) & (distance < window)


def check(
    qkv: tuple[Tensor, Tensor, Tensor],
    expected: Tensor,
    *args: Any,
    module: Any = PLAIN,
    learned: tuple[Tensor, ...] = (),
    **options: Any,
) -> None:
    """Output and every gradient."""
    mask = args[0] if args else None
    out, weights = attention(module, *qkv, mask, **options)
    assert weights is None
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected)
    wanted = (*qkv, *learned)
    incoming = torch.randn_like(out)
    got = torch.autograd.grad(out, wanted, incoming)
    for mine, other in zip(got, torch.autograd.grad(expected, wanted, incoming), strict=True):
        torch.testing.assert_close(mine, other)


def test_without_a_mask_causality_is_the_argument_then_the_modules_then_true() -> None:
    qkv = inputs()
    check(qkv, plain(qkv, causal(N, N)))
    check(qkv, plain(qkv), module=ENCODER)
    check(qkv, plain(qkv), is_causal=False)
    check(qkv, plain(qkv, causal(N, N)), is_causal=True, module=ENCODER)


def test_without_a_mask_more_keys_are_an_empty_static_cache() -> None:
    qkv = inputs(N, M)
    check(qkv, plain(qkv, causal(N, M)))
    check(qkv, plain(qkv, causal(N, M, window=3)), sliding_window=3)
    one = inputs(1, M)
    check(one, plain(one))
    check(one, plain(one, causal(1, M, M - 1, 3)), sliding_window=3)


def test_without_a_mask_the_flash_name_continues_a_cache() -> None:
    qkv = inputs(N, M)
    check(qkv, plain(qkv, causal(N, M, M - N)), module=FLASH)


def test_a_mask_of_four_dimensions_holds_everything() -> None:
    qkv = inputs(N, M)
    keep = torch.rand(B, 1, N, M) > 0.4
    keep[0, 0, 1] = False  # padding on the left
    check(qkv, plain(qkv, keep), keep, sliding_window=2, is_causal=True)


def test_numbers_of_four_dimensions_are_a_bias_with_a_gradient() -> None:
    qkv = inputs(N, M)
    bias = torch.randn(B, Hq, N, M, dtype=torch.float64, requires_grad=True)
    table = torch.randn(1, N, M, Hq, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    check(qkv, plain(qkv, bias=bias), bias, learned=(bias,))
    both = plain(qkv, bias=bias + table)
    check(qkv, both, bias, position_bias=table, learned=(bias, table))
    keys = torch.zeros(B, 1, 1, M, dtype=torch.float64)
    keys[:, :, :, 5:] = torch.finfo(torch.float32).min
    check(qkv, plain(qkv, bias=keys), keys, module=ENCODER)


def test_position_bias() -> None:
    qkv = inputs()
    table = torch.randn(1, N, N, Hq, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    check(qkv, plain(qkv, causal(N, N), table), position_bias=table, learned=(table,))
    keep = torch.rand(B, 1, N, N) > 0.4
    check(qkv, plain(qkv, keep, table, 1.0), keep, scaling=1.0, position_bias=table)


def test_a_mask_of_two_dimensions_is_of_keys() -> None:
    qkv = inputs(N, M)
    keep = torch.ones(B, M, dtype=torch.bool)
    keep[0, :4] = False
    check(qkv, plain(qkv, keep[:, None, None] & causal(N, M, M - N)), keep)
    check(qkv, plain(qkv, keep[:, None, None]), keep.long(), is_causal=False)
    near = keep[:, None, None] & causal(N, M, M - N, 3)
    check(qkv, plain(qkv, near), keep, sliding_window=3)


def test_a_mask_of_two_dimensions_and_another_length_of_cache() -> None:
    query, key, value = inputs(2, M)
    keep = torch.ones(B, 6, dtype=torch.bool)
    keep[0, 0] = False
    written = (query, key[:, :, :6], value[:, :, :6])
    expected = plain(written, keep[:, None, None] & causal(2, 6, 4))
    check((query, key, value), expected, keep)
    longer = torch.ones(B, M + 4, dtype=torch.bool)
    check((query, key, value), plain((query, key, value), causal(2, M, M - 2)), longer)


def test_a_window_without_causality_reaches_both_ways() -> None:
    qkv = inputs(M, M)
    near = causal(M, M, window=3) | causal(M, M, window=3).T
    check(qkv, plain(qkv, near), module=ENCODER, sliding_window=3)


def test_sink_softcap_and_scaling() -> None:
    qkv = inputs()
    sink = torch.randn(Hq, dtype=torch.float64, requires_grad=True)
    expected = plain(qkv, causal(N, N), sink=sink, scale=0.3, softcap=2.0)
    check(qkv, expected, scaling=0.3, s_aux=sink, softcap=2.0, learned=(sink,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sinks_and_biases_of_other_dtypes(dtype: torch.dtype) -> None:
    query, key, value = (x.detach().to(dtype) for x in inputs())
    sink = torch.randn(Hq, dtype=torch.bfloat16)
    bias = torch.randn(1, Hq, N, N, dtype=torch.float16)
    out, _ = attention(PLAIN, query, key, value, bias, s_aux=sink)
    assert out.dtype == dtype
    wide = tuple(x.double() for x in (query, key, value))
    expected = plain(wide, bias=bias.double(), sink=sink.double())
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


DOCUMENTS = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
STARTS = torch.tensor([0, 3, 4, 8], dtype=torch.int32)


def test_packed_sequences() -> None:
    qkv = inputs(M, M, 1)
    same = DOCUMENTS[:, None] == DOCUMENTS
    packed = {
        "cu_seq_lens_q": STARTS,
        "cu_seq_lens_k": STARTS,
        "max_length_q": 4,
        "max_length_k": 4,
    }
    check(qkv, plain(qkv, same & causal(M, M)), **packed)
    check(qkv, plain(qkv, same), is_causal=False, **packed)
    check(qkv, plain(qkv, same & causal(M, M, window=2)), sliding_window=2, **packed)
    keep = (same & causal(M, M))[None, None]  # what a text model makes of position_ids
    check(qkv, plain(qkv, keep), keep, **packed)


def test_positions_that_start_again_are_packed_sequences_of_the_flash_name() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3]])
    qkv = inputs(M, M, 1)
    same = DOCUMENTS[:, None] == DOCUMENTS
    check(qkv, plain(qkv, same & causal(M, M)), module=FLASH, position_ids=positions)
    check(qkv, plain(qkv, causal(M, M)), module=FLASH, position_ids=torch.arange(3, 11)[None])
    check(qkv, plain(qkv, causal(M, M)), position_ids=positions)  # there the mask would say so


@pytest.mark.full
@pytest.mark.parametrize("module", [PLAIN, FLASH], ids=["plain", "flash"])
def test_compiled_once_for_every_length(module: Any) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for length in (5, 9, 14):
        qkv = inputs(length, length, 1)
        positions = torch.cat([torch.arange(3), torch.arange(length - 3)])[None]
        got, _ = compiled(module, *qkv, None, sliding_window=4, position_ids=positions)
        expected, _ = attention(module, *qkv, None, sliding_window=4, position_ids=positions)
        torch.testing.assert_close(got, expected)
        graphs.append(counter.frame_count)
    assert len(set(graphs)) == 1


def test_learned_queries_for_a_whole_batch() -> None:
    query, key, value = inputs(N, M)
    one = query[:1].detach().requires_grad_()
    check((one, key, value), plain((one, key, value)), module=ENCODER)


def test_dropout_draws_from_torchs_generator() -> None:
    qkv = inputs(M, M)
    torch.manual_seed(0)
    first, _ = attention(PLAIN, *qkv, None, dropout=0.5)
    torch.manual_seed(0)
    again, _ = attention(PLAIN, *qkv, None, dropout=0.5)
    assert torch.equal(first, again)
    assert not torch.allclose(first, plain(qkv, causal(M, M)))


def test_what_changes_nothing_is_ignored() -> None:
    qkv = inputs()
    check(
        qkv,
        plain(qkv, causal(N, N)),
        position_ids=torch.arange(N)[None],
        use_cache=True,
        output_router_logits=True,
        output_attentions=False,
        output_hidden_states=False,
        num_items_in_batch=3,
        something_absent=None,
        something_off=False,
    )


PAIRS = torch.ones(B, 1, N, N, dtype=torch.bool)
CHUNKS = SimpleNamespace(config=SimpleNamespace(attention_chunk_size=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, 'attn_implementation="eager"'),
        ({"cache": object()}, "continuous batching"),
        ({"attention_mask": object()}, 'attn_implementation="flex_attention"'),
        ({"attention_mask": PAIRS[0]}, "attention_mask of 4 dimensions"),
        ({"attention_mask": PAIRS.long()}, "attention_mask of 4 dimensions"),
        ({"attention_mask": torch.ones(B, N)}, "attention_mask of 4 dimensions"),
        ({"sliding_window": 0}, "sliding_window of at least 1, got 0"),
        ({"block_indices": torch.zeros(1)}, "block_indices is not supported"),
        ({"output_cross_attentions": True}, "output_cross_attentions is not supported"),
        (
            {"cu_seq_lens_q": STARTS, "position_bias": torch.zeros(1, 1, N, N)},
            "use a batch with padding",
        ),
        ({"cu_seq_lens_q": STARTS, "attention_mask": PAIRS[:, 0, 0]}, "leave it out"),
        ({"cu_seq_lens_q": STARTS, "module": CHUNKS}, "chunks of 2"),
    ],
)
def test_what_cannot_be_served_raises(options: dict[str, Any], message: str) -> None:
    module, mask = options.pop("module", PLAIN), options.pop("attention_mask", None)
    with pytest.raises(NotImplementedError, match=message):
        attention(module, *inputs(), mask, **options)
