"""scaled_dot_product_attention of a whole process: torch's meaning, seen to run, and undone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import fulgurite.nn.functional as F
from fulgurite.integrations import sdpa
from seen import Seen

taken_before = TF.scaled_dot_product_attention


@pytest.fixture
def enabled() -> Iterator[None]:
    with sdpa.enable():
        yield


def randn(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def plain(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return randn(*shape), randn(*shape), randn(*shape)


def cases() -> dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]]:
    torch.manual_seed(0)
    hidden_row = torch.rand(2, 1, 5, 7) > 0.4
    hidden_row[0, 0, 2] = False
    cross = randn(2, 4, 5, 8), randn(2, 4, 7, 8), randn(2, 4, 7, 8)
    turned = tuple(randn(2, 5, 4, 8).transpose(1, 2) for _ in range(3))
    return {
        "plain": (plain(2, 4, 5, 8), {}),
        "scale": (plain(2, 4, 5, 8), {"scale": 0.3}),
        "causal, more keys": (cross, {"is_causal": True}),
        "causal, fewer keys": ((cross[1], cross[0], cross[0]), {"is_causal": True}),
        "another width of values": ((*cross[:2], randn(2, 4, 7, 3)), {}),
        "bool mask": (cross, {"attn_mask": torch.rand(2, 4, 5, 7) > 0.3}),
        "bool mask of two dimensions": (cross, {"attn_mask": torch.rand(5, 7) > 0.3}),
        "keys' mask": (cross, {"attn_mask": torch.rand(2, 1, 1, 7) > 0.3}),
        "a row that keeps nothing": (cross, {"attn_mask": hidden_row}),
        "learned mask": (cross, {"attn_mask": randn(1, 4, 5, 7)}),
        "learned mask of one dimension": (cross, {"attn_mask": randn(7)}),
        "mask of float32": (cross, {"attn_mask": torch.randn(5, 7)}),
        "grouped heads": ((cross[0], randn(2, 2, 7, 8), randn(2, 2, 7, 8)), {"enable_gqa": True}),
        "grouped unlike": ((cross[0], randn(2, 2, 7, 8), randn(2, 1, 7, 8)), {"enable_gqa": True}),
        "one head of keys": ((cross[0], randn(2, 1, 7, 8), randn(2, 1, 7, 8)), {}),
        "one head of queries": ((randn(2, 1, 5, 8), *cross[1:]), {}),
        "batches broadcast": ((cross[0], randn(1, 4, 7, 8), randn(4, 7, 8)), {}),
        "heads unlike": ((cross[0], randn(2, 1, 7, 8), randn(2, 4, 7, 8)), {}),
        "three dimensions": (plain(4, 5, 8), {"is_causal": True}),
        "three dimensions, mask": (plain(4, 5, 8), {"attn_mask": torch.rand(4, 5, 5) > 0.3}),
        "two dimensions": (plain(5, 8), {"attn_mask": randn(5, 5)}),
        "no rows": ((randn(2, 4, 0, 8), *cross[1:]), {}),
        "no keys": ((cross[0], randn(2, 4, 0, 8), randn(2, 4, 0, 8)), {}),
        "no batch": (plain(0, 4, 5, 8), {}),
        "strides": (turned, {}),
        "everything dropped": (cross, {"dropout_p": 1.0}),
    }


CASES = cases()


def with_gradients(inputs: tuple[Tensor, ...], options: dict[str, Any]) -> list[Any]:
    torch.manual_seed(1)
    out = TF.scaled_dot_product_attention(*inputs, **options)
    wanted = [x for x in (*inputs, options.get("attn_mask")) if x is not None and x.requires_grad]
    grads = torch.autograd.grad(
        out, wanted, torch.randn(out.shape, dtype=out.dtype), allow_unused=True
    )
    return [out.detach(), *grads]


@pytest.mark.parametrize("name", CASES)
def test_what_torch_means(name: str) -> None:
    inputs, options = CASES[name]
    expected = with_gradients(inputs, options)
    with sdpa.enable(), Seen() as seen:
        got = with_gradients(inputs, options)
    assert seen.served, seen.names
    for mine, torchs in zip(got, expected, strict=True):
        if torchs is None:  # math of no rows or keys may not reach an input at all
            torchs = torch.zeros_like(mine)
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize(
    ("shapes", "options", "error", "message"),
    [
        ([(1, 1, 2, 3, 8)] * 3, {}, NotImplementedError, "query of 2 to 4 dimensions"),
        ([(8,)] * 3, {}, NotImplementedError, "query of 2 to 4 dimensions"),
        ([(2, 3, 4, 8), (3, 3, 4, 8), (3, 3, 4, 8)], {}, RuntimeError, "batches that broadcast"),
        ([(2, 3, 4, 8), (2, 2, 4, 8), (2, 2, 4, 8)], {}, RuntimeError, "heads that broadcast"),
        (
            [(2, 3, 4, 8), (2, 2, 4, 8), (2, 2, 4, 8)],
            {"enable_gqa": True},
            RuntimeError,
            "3 heads of query to be a multiple of key's and value's, got 2 and 2",
        ),
        ([(2, 3, 4, 8)] * 3, {"dropout_p": 1.5}, ValueError, "dropout_p"),
        (
            [(2, 3, 4, 8)] * 3,
            {"is_causal": True, "attn_mask": torch.ones(4, 4, dtype=torch.bool)},
            RuntimeError,
            "no attn_mask with is_causal",
        ),
        ([(2, 3, 4, 8)] * 3, {"attn_mask": torch.ones(4, 5)}, RuntimeError, "bias"),
        ([(1, 3, 4, 8)] * 3, {"attn_mask": torch.ones(2, 1, 4, 4)}, RuntimeError, "bias"),
    ],
)
def test_what_cannot_be_served_raises(
    shapes: list[tuple[int, ...]],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    enabled: None,
) -> None:
    with pytest.raises(error, match=message):
        TF.scaled_dot_product_attention(*(torch.randn(shape) for shape in shapes), **options)


def test_who_is_served(enabled: None) -> None:
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    expected = F.attention(x, x, x)

    @torch.jit.script
    def scripted(x: Tensor) -> Tensor:
        return TF.scaled_dot_product_attention(x, x, x)

    for call in (lambda x: taken_before(x, x, x), scripted):
        with Seen() as seen:
            out = call(x)
            out.sum().backward()
        assert seen.served
        assert "fulgurite::_attention_backward" in seen.names
        assert torch.equal(out, expected)
        with torch.inference_mode():
            assert torch.equal(call(x), expected)
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    with Seen() as seen:
        layer(*[torch.randn(2, 4, 16)] * 3, need_weights=False)
    assert seen.served


def test_saved_scripts_are_served(enabled: None) -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return TF.scaled_dot_product_attention(x, x, x, is_causal=True)

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Attends()), buffer)
    buffer.seek(0)
    loaded, x = torch.jit.load(buffer), torch.randn(1, 2, 4, 8)
    assert torch.equal(loaded(x), F.attention(x, x, x, causal=True))


def test_compiled(enabled: None) -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph.code)
        return graph

    def function(x: Tensor) -> Tensor:
        return TF.scaled_dot_product_attention(x, x, x, is_causal=True)

    compiled = torch.compile(function, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    expected = F.attention(x, x, x, causal=True, align="top_left")
    torch.testing.assert_close(compiled(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x.detach().clone()), expected)
    assert len(graphs) >= 2
    assert all("fulgurite.attention" in code for code in graphs), graphs


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)]
)
@pytest.mark.parametrize("grad", [False, True])
def test_compiled_before_and_after(
    compiler: str, grad: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is served from compiled code, tables of kernels or files of the other state."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    x = torch.randn(2, 3, 5, 8, requires_grad=grad)
    tag = torch.compiler.config.cache_key_tag
    compiled = torch.compile(
        lambda x: TF.scaled_dot_product_attention(x, x, x).cos(), backend=compiler, fullgraph=True
    )

    def served() -> bool:
        compiled(x)
        with torch.profiler.profile() as profile:
            compiled(x)
        names = {event.key for event in profile.key_averages()}
        ours = "fulgurite::attention" in names
        assert ours is not any("_scaled_dot_product" in name for name in names), names
        return ours

    assert not served()
    with sdpa.enable():
        assert served()
    assert not served()
    with sdpa.enable():
        torch._dynamo.reset()
        assert served()
    assert torch.compiler.config.cache_key_tag == tag


def test_autocast(enabled: None) -> None:
    x = torch.randn(2, 3, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = TF.scaled_dot_product_attention(x, x, x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, F.attention(x.bfloat16(), x.bfloat16(), x.bfloat16()))


def test_dropout_is_fulgurites(enabled: None) -> None:
    x = torch.randn(2, 3, 16, 8)
    torch.manual_seed(5)
    out = TF.scaled_dot_product_attention(x, x, x, dropout_p=0.4)
    torch.manual_seed(5)
    assert torch.equal(out, F.attention(x, x, x, dropout_p=0.4))


def test_enabling_twice_and_undoing() -> None:
    x = torch.randn(1, 2, 4, 8, requires_grad=True)

    def served() -> bool:
        with Seen() as seen:
            TF.scaled_dot_product_attention(x, x, x)
        assert seen.served is sdpa.is_enabled()
        return seen.served

    assert not served()
    sdpa.enable()
    with sdpa.enable():  # enabled before: its end changes nothing
        assert served()
    assert served()
    sdpa.disable()
    sdpa.disable()
    assert not served()
    with pytest.raises(KeyError), sdpa.enable():
        raise KeyError
    assert not served()
