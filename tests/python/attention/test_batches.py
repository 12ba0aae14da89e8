"""nn.functional.attention: inputs without a batch or with two batch dimensions, and lse."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import fulgurite.nn.functional as F


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


Q, KV = drawn(2, 3, 4, 5, 8), drawn(2, 3, 2, 7, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": torch.rand(2, 3, 1, 5, 7) < 0.7},
        {"mask": torch.rand(2, 1, 4, 1, 7) < 0.7},
        {"mask": torch.rand(1, 3, 1, 5, 7) < 0.7},
        {"mask": torch.rand(3, 1, 5, 7) < 0.7},
        {"bias": drawn(1, 1, 4, 5, 7)},
        {"bias": drawn(5, 7)},
        {"alibi_slopes": drawn(4).abs()},
        {"alibi_slopes": drawn(2, 3, 4).abs()},
    ],
    ids=lambda options: str({name: list(t.shape) for name, t in options.items()}),
)
def test_two_batch_dimensions(options: dict[str, Tensor]) -> None:
    """Each pair of a batch by itself."""
    out, lse = F.attention(Q, KV, KV, return_lse=True, **options)
    assert out.shape == (2, 3, 4, 5, 8)
    for i in range(2):
        for j in range(3):
            own: dict[str, Tensor] = {}
            for name, t in options.items():
                whole = (2, 3, 4) if name == "alibi_slopes" else (2, 3, 4, 5, 7)
                own[name] = t.expand(whole)[i, j].contiguous()
            one, one_lse = F.attention(Q[i, j], KV[i, j], KV[i, j], return_lse=True, **own)
            torch.testing.assert_close(out[i, j], one)
            torch.testing.assert_close(lse[i, j], one_lse)


ONES = torch.ones(1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: F.attention(Q, KV.transpose(0, 1), KV),
            r"key of shape \[2, 3, Hkv, M, 8\], got \[3, 2, 2, 7, 8\]",
        ),
        (
            lambda: F.attention(Q, KV, KV.transpose(0, 1)),
            r"value of shape \[2, 3, 2, 7, Dv\], got \[3, 2, 2, 7, 8\]",
        ),
        (
            lambda: F.attention(Q, KV.flatten(0, 1), KV),
            r"key of shape \[2, 3, Hkv, M, 8\], got \[6, 2, 7, 8\]",
        ),
        (
            lambda: F.attention(Q, KV, KV.flatten(0, 1)),
            r"value of shape \[2, 3, 2, 7, Dv\], got \[6, 2, 7, 8\]",
        ),
        (
            lambda: F.attention(Q, KV[..., :6], KV),
            r"key of shape \[2, 3, Hkv, M, 8\], got \[2, 3, 2, 7, 6\]",
        ),
        (
            lambda: F.attention(Q[0], KV, KV),
            r"key of shape \[B, Hkv, M, D\], got \[2, 3, 2, 7, 8\]",
        ),
        (
            lambda: F.attention(Q[0, 0], KV[0], KV[0]),
            r"key of shape \[Hkv, M, 8\], got \[3, 2, 7, 8\]",
        ),
        (
            lambda: F.attention(Q[0, 0], KV[0, 0, :, 0], KV[0, 0]),
            r"key of shape \[Hkv, M, 8\], got \[2, 8\]",
        ),
        (lambda: F.attention(Q[0, 0, 0], KV, KV), r"query of 3, 4 or 5 dimensions, got \[5, 8\]"),
        (
            lambda: F.attention(Q[0], KV[0], KV[0], mask=ONES.expand(3, 1, 1, 5, 7)),
            r"mask broadcastable to \[3, 4, 5, 7\], got \[3, 1, 1, 5, 7\]",
        ),
        (
            lambda: F.attention(Q, KV, KV, mask=ONES.expand(3, 2, 1, 5, 7)),
            r"mask broadcastable to \[2, 3, 4, 5, 7\], got \[3, 2, 1, 5, 7\]",
        ),
        (
            lambda: F.attention(Q, KV, KV, mask=ONES.expand(4, 1, 5, 7)),
            r"mask broadcastable to \[2, 3, 4, 5, 7\], got \[4, 1, 5, 7\]",
        ),
        (
            lambda: F.attention(Q, KV, KV, bias=drawn(5, 6)),
            r"bias broadcastable to \[2, 3, 4, 5, 7\], got \[5, 6\]",
        ),
        (
            lambda: F.attention(Q[0, 0], KV[0, 0], KV[0, 0], mask=ONES.expand(2, 1, 5, 7)),
            r"mask broadcastable to \[4, 5, 7\], got \[2, 1, 5, 7\]",
        ),
        (
            lambda: F.attention(Q, KV, KV, alibi_slopes=drawn(3, 2, 4)),
            r"alibi_slopes of shape \[4\] or \[2, 3, 4\], got \[3, 2, 4\]",
        ),
    ],
)
def test_errors_name_what_was_given(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match="fulgurite::attention: expected " + message):
        call()


def test_dtypes_are_the_operators_matter() -> None:
    with pytest.raises(TypeError, match=r"fulgurite::attention: expected .*key"):
        F.attention(Q, KV.float(), KV)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = F.attention(Q.float(), KV.bfloat16(), KV.float())
    low = F.attention(Q.bfloat16(), KV.bfloat16(), KV.bfloat16())
    assert torch.equal(mixed, low)


# ---------------------------------------------------------------- one signature, two results


@pytest.mark.parametrize("function", [F.attention, F.attention_varlen])
def test_the_public_function_tells_its_arguments(function: Any) -> None:
    signature = inspect.signature(function)
    operator = getattr(torch.ops.fulgurite, function.__name__)
    names = [argument.name for argument in operator.default._schema.arguments]
    assert list(signature.parameters)[-1] == "return_lse"
    assert len(signature.parameters) == len(names) + 1
    assert function.__doc__
    assert "return_lse" in inspect.getsource(function)


def with_lse(query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = F.attention(query, key, value, None, causal=True, return_lse=True)
    packed, _ = F.attention_varlen(query[0], key[0], value[0], starts, starts, return_lse=True)
    return out + packed[None], lse


def without_lse(query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> Tensor:
    out = F.attention(query, key, value, None, causal=True)
    return out + F.attention_varlen(query[0], key[0], value[0], starts, starts, return_lse=False)


@pytest.mark.parametrize("function", [with_lse, without_lse])
@pytest.mark.parametrize(
    "change",
    [
        torch.jit.script,
        lambda function: torch.compile(function, fullgraph=True, backend="aot_eager"),
    ],
    ids=["scripted", "compiled"],
)
def test_both_variants_in_graphs(function: Callable[..., Any], change: Any) -> None:
    x = drawn(1, 6, 6, 8)
    inputs = (x, x, x, torch.tensor([0, 2, 6]))
    torch.testing.assert_close(change(function)(*inputs), function(*inputs))


def test_sizes_are_not_part_of_a_graph() -> None:
    """No graph for each length."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, dynamic=True, fullgraph=True)
    def scaled(x: Tensor) -> Tensor:
        return F.attention(x, x, x) * x.size(2)

    scaled(drawn(1, 2, 5, 8))
    compiled = counter.frame_count
    for length in (6, 9, 12):
        scaled(drawn(1, 2, length, 8))
    assert counter.frame_count == compiled


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, 1, 1), "query, got None"),
        ((1, [[0.5]], 1), re.escape("key, got [[0.5]]")),
        ((1, 1, 2.0), "value, got 2.0"),
        ((1, 1, 1, 0.1), "bias, got 0.1"),  # dropout_p's place elsewhere
        ((1, 1, 1, None, False), "mask, got False"),
    ],
)
def test_what_is_no_tensor(arguments: tuple[Any, ...], says: str) -> None:
    x = torch.randn(1, 2, 3, 4)
    given = [x if argument == 1 else argument for argument in arguments]
    with pytest.raises(TypeError, match=f"^fulgurite::attention: expected a tensor for {says}$"):
        F.attention(*given)
