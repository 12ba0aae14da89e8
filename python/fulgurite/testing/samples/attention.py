"""Sample calls of the attention family.

B batch, Hq query heads, Hkv key/value heads, N queries, M keys, D query/key width, Dv value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.testing.references import attention as reference
from fulgurite.testing.registry import ErrorSample, Operator, Sample


def qkv(
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
    *,
    B: int = 2,
    Hq: int = 2,
    Hkv: int | None = None,
    N: int,
    M: int,
    D: int,
    Dv: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query (B, Hq, N, D), key (B, Hkv, M, D) and value (B, Hkv, M, Dv)."""
    Hkv = Hq if Hkv is None else Hkv
    Dv = D if Dv is None else Dv
    shapes = ((B, Hq, N, D), (B, Hkv, M, D), (B, Hkv, M, Dv))
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
    )
    return query, key, value


def attention_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)

    def tensors(**sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
        return qkv(generator, dtype, device, **sizes)

    def mask(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) < 0.7).to(device)

    yield Sample("causal_grouped", tensors(Hq=4, Hkv=2, N=9, M=12, D=8), {"causal": True})
    yield Sample(
        "mask_window_odd_widths",
        tensors(N=11, M=6, D=5, Dv=7),
        {
            "mask": mask(2, 1, 11, 6),
            "scale": 0.3,
            "align": "top_left",
            "window_left": 2,
            "window_right": 3,
        },
    )
    yield Sample(
        "causal_window_across_tiles",
        tensors(B=1, Hq=2, Hkv=1, N=70, M=133, D=20, Dv=12),
        {"causal": True, "window_left": 60},
    )
    yield Sample(
        "more_queries_than_keys",  # bottom_right: the first queries see nothing
        tensors(N=13, M=5, D=16),
        {"causal": True},
    )
    yield Sample("one_query", tensors(Hq=6, Hkv=2, N=1, M=37, D=16), {"mask": mask(37)})
    query, key, value = tensors(N=8, M=10, D=6)
    heads_last = query.transpose(1, 2).contiguous().transpose(1, 2)
    yield Sample(
        "strided",
        (heads_last, key.mT.contiguous().mT, value[:, :1].expand(2, 2, 10, 6)),
        {"mask": mask(2, 10, 8).mT},
    )
    yield Sample("no_keys", tensors(N=3, M=0, D=4), {"causal": True})
    yield Sample("no_queries", tensors(N=0, M=3, D=4), {})
    yield from score_samples(generator, dtype, device)


def score_samples(
    generator: torch.Generator, dtype: torch.dtype, device: torch.device
) -> Iterator[Sample]:
    """What is added to, and done with, the scores."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tensors(**sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
        return qkv(generator, dtype, device, **sizes)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    bias = normal(2, 1, 7, 9)  # of batch 4's windows: index b mod 2
    bias[0, 0, 2, 4:] = -torch.inf
    yield Sample("bias_periodic", tensors(B=4, Hq=2, N=7, M=9, D=8), {"bias": bias})
    yield Sample(
        "bias_of_heads_sink",
        tensors(Hq=4, Hkv=2, N=101, M=135, D=8),
        {"bias": normal(4, 1, 135, dtype=wide), "sink": normal(4, dtype=wide), "causal": True},
    )
    yield Sample(
        "alibi_sinks_chunks_softcap",
        tensors(Hq=4, Hkv=2, N=18, M=21, D=8),
        {
            "alibi_slopes": torch.rand(2, 4, generator=generator).to(device, wide),
            "sink": normal(4),
            "causal": True,
            "window_left": 3,
            "sink_tokens": 2,
            "chunk_size": 12,
            "softcap": 2.0,
        },
    )
    layout = torch.rand(2, 5, 6, generator=generator) < 0.6
    yield Sample(
        "block_layout_relu2",
        tensors(N=19, M=22, D=8),
        {
            "block_layout": layout.to(device),
            "block_size": 4,
            "score": "relu2",
            "score_scale": 0.5,
            "bias": normal(19, 1),
        },
    )
    yield Sample("laplace", tensors(N=6, M=11, D=8), {"score": "laplace", "causal": True})
    yield Sample(
        "dropout",
        tensors(Hq=4, Hkv=2, N=33, M=45, D=8),
        {"dropout_p": 0.3, "philox": torch.tensor([12345678901234, 7], device=device)},
    )
    yield Sample(
        "dropout_of_a_part",
        tensors(Hq=4, Hkv=2, N=9, M=14, D=8),
        {"dropout_p": 0.3, "philox": torch.tensor([-5, -(1 << 40), 3, 12], device=device)},
    )


def attention_errors(device: torch.device) -> Iterator[ErrorSample]:
    yield from attention_type_errors(device)
    yield from attention_shape_errors(device)
    yield from attention_value_errors(device)
    yield from attention_unsupported(device)


def small_call(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A right call, for the wrong ones to differ from in one place."""
    return qkv(torch.Generator().manual_seed(0), torch.float32, device, Hq=4, Hkv=2, N=3, M=5, D=8)


def attention_type_errors(device: torch.device) -> Iterator[ErrorSample]:
    query, key, value = small_call(device)
    yield ErrorSample("key_dtype", (query, key.double(), value), {}, TypeError, "key")
    yield ErrorSample("value_dtype", (query, key, value.bfloat16()), {}, TypeError, "value")
    yield ErrorSample("integers", (query.int(), key.int(), value.int()), {}, TypeError, "query")
    yield ErrorSample(
        "mask_dtype",
        (query, key, value),
        {"mask": torch.ones(3, 5, device=device)},
        TypeError,
        "mask",
    )
    wrong = {
        "bias": torch.zeros(3, 5, dtype=torch.float16, device=device),
        "sink": torch.zeros(4, dtype=torch.float64, device=device),
        "alibi_slopes": torch.zeros(4, dtype=torch.bfloat16, device=device),
        "block_layout": torch.ones(1, 1, 1, device=device),
        "philox": torch.zeros(2, dtype=torch.int32, device=device),
    }
    for name, tensor in wrong.items():
        yield ErrorSample(f"{name}_dtype", (query, key, value), {name: tensor}, TypeError, name)
    yield ErrorSample(  # the type is checked before the shape
        "type_before_shape", (query, key.double()[:, :, :, :7], value), {}, TypeError, "key"
    )


def attention_shape_errors(device: torch.device) -> Iterator[ErrorSample]:
    query, key, value = small_call(device)
    cases = {
        "query_3d": ((query[0], key, value), "query"),
        "key_width": (
            (query, key[..., :7], value),
            r"expected key of shape \[.*\], got \[2, 2, 5, 7\]",
        ),
        "key_batch": ((query, key[:1], value), "key"),
        "value_length": ((query, key, value[:, :, :4]), "value"),
        "value_heads": ((query, key, value[:, :1]), "value"),
        "heads_not_a_multiple": ((query[:, :3], key, value), "Hq"),
    }
    for name, (tensors, match) in cases.items():
        yield ErrorSample(name, tensors, {}, RuntimeError, match)
    mask = torch.ones(4, 5, dtype=torch.bool, device=device)
    yield ErrorSample("mask_shape", (query, key, value), {"mask": mask}, RuntimeError, "mask")
    wrong = {
        "bias": torch.zeros(5, 5, device=device),
        "sink": torch.zeros(3, device=device),
        "alibi_slopes": torch.zeros(3, 4, device=device),
        "philox": torch.zeros(3, dtype=torch.int64, device=device),
    }
    part = {"dropout_p": 0.1, "philox": torch.tensor([0, 0, 2, -1], device=device)}
    yield ErrorSample("first_head_negative", (query, key, value), part, RuntimeError, "first head")
    for name, tensor in wrong.items():
        yield ErrorSample(f"{name}_shape", (query, key, value), {name: tensor}, RuntimeError, name)
    layout = {"block_layout": mask[None, :1, :1].expand(3, 1, 1), "block_size": 8}
    yield ErrorSample("layout_shape", (query, key, value), layout, RuntimeError, "block_layout")
    yield ErrorSample(  # the shape is checked before the values
        "shape_before_value", (query, key[..., :7], value), {"align": "center"}, RuntimeError, "key"
    )


def attention_value_errors(device: torch.device) -> Iterator[ErrorSample]:
    tensors = small_call(device)
    sink = torch.zeros(4, device=device)
    layout = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
    philox = torch.zeros(2, dtype=torch.int64, device=device)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "align": ({"align": "center"}, "align"),
        "score": ({"score": "sigmoid"}, "score"),
        "score_scale_with_softmax": ({"score_scale": 0.5}, "score_scale"),
        "relu2_with_sink": ({"score": "relu2", "sink": sink}, "sink"),
        "laplace_with_dropout": (
            {"score": "laplace", "dropout_p": 0.1, "philox": philox},
            "dropout",
        ),
        "dropout_of_all": ({"dropout_p": 1.0, "philox": philox}, "dropout_p"),
        "dropout_negative": ({"dropout_p": -0.1, "philox": philox}, "dropout_p"),
        "dropout_without_philox": ({"dropout_p": 0.1}, "philox"),
        "softcap_negative": ({"softcap": -1.0}, "softcap"),
        "chunk_size_negative": ({"chunk_size": -1}, "chunk_size"),
        "sink_tokens_negative": ({"sink_tokens": -1}, "sink_tokens"),
        "layout_without_size": ({"block_layout": layout}, "block_size"),
    }
    for name, (kwargs, match) in cases.items():
        yield ErrorSample(name, tensors, kwargs, ValueError, match)
    query, key, value = tensors
    no_width = (query[..., :0], key[..., :0], value)
    yield ErrorSample("no_width_without_scale", no_width, {}, ValueError, "scale")


def attention_unsupported(device: torch.device) -> Iterator[ErrorSample]:
    """Valid calls that no kernel serves."""
    slopes = torch.ones(4, device=device, requires_grad=True)
    yield ErrorSample(
        "grad_of_alibi_slopes",
        small_call(device),
        {"alibi_slopes": slopes},
        NotImplementedError,
        "alibi_slopes",
    )


def angles(
    generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of random angles."""
    angle = torch.rand(shape, generator=generator) * 6.28
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def rope_samples(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def x(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    yield Sample("halves", (x(2, 3, 7, 8), *angles(generator, (7, 4), dtype, device)), {})
    yield Sample(
        "interleaved_partial",
        (x(2, 3, 5, 11), *angles(generator, (2, 1, 5, 3), wide, device)),
        {"interleaved": True},
    )
    yield Sample(
        "conjugate", (x(1, 2, 9, 6), *angles(generator, (9, 3), wide, device)), {"conjugate": True}
    )
    yield Sample(
        "conjugate_interleaved_wide",
        (x(2, 33, 72), *angles(generator, (33, 36), dtype, device)),
        {"conjugate": True, "interleaved": True},
    )
    cos, sin = angles(generator, (4, 6), dtype, device)
    yield Sample("strided", (x(2, 6, 4, 12).mT[..., :4, :].mT, cos[:, ::3], sin[:, ::3]), {})
    yield Sample("nothing_rotated", (x(3, 4), *angles(generator, (3, 0), dtype, device)), {})
    yield Sample("no_rows", (x(2, 0, 4), *angles(generator, (0, 2), dtype, device)), {})


def rope_errors(device: torch.device) -> Iterator[ErrorSample]:
    x = torch.ones(2, 3, 5, 8, device=device)
    cos, sin = angles(torch.Generator().manual_seed(0), (5, 4), torch.float32, device)
    cases: dict[str, tuple[tuple[Tensor, ...], type[Exception], str]] = {
        "integers": ((x.int(), cos, sin), TypeError, "x"),
        "cos_dtype": ((x, cos.bfloat16(), sin), TypeError, "cos"),
        "sin_dtype": ((x, cos, sin.double()), TypeError, "sin"),
        "more_than_the_width": ((x[..., :7], cos, sin), RuntimeError, "cos"),
        "cos_length": ((x, cos[:4], sin[:4]), RuntimeError, "cos"),
        "sin_unlike_cos": ((x, cos, sin[:, :3]), RuntimeError, "sin"),
        "too_many_dims": ((x, cos.expand(2, 2, 3, 5, 4), sin), RuntimeError, "cos"),
        "one_dim": ((x[0, 0, 0], cos, sin), RuntimeError, "x"),
    }
    for name, (args, error, match) in cases.items():
        yield ErrorSample(name, args, {}, error, match)


OPERATORS = (
    Operator(
        name="attention",
        samples=attention_samples,
        errors=attention_errors,
        reference=reference.attention,
        naive=reference.attention_naive,
        differentiable=(0, 1, 2, "bias", "sink"),
        autocast="lower",
        autocast_args=(0, 1, 2),
    ),
    Operator(
        name="rope",
        samples=rope_samples,
        errors=rope_errors,
        reference=reference.rope,
        naive=reference.rope_naive,
        differentiable=(0,),
    ),
)
