"""Modules and processors as timm and diffusers write them; the released ones: tests/clients."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from fulgurite.integrations import diffusers, timm
from seen import Seen, saved


class Fused(nn.Module):
    """A module of timm: the flag chooses the path."""

    fused_attn = False

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if self.fused_attn:
            return TF.scaled_dot_product_attention(x, x, x, scale=1.0)
        return (x @ x.mT).softmax(-1) @ x


class Flagged(nn.Module):
    fused_attn = True

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


class Processor:
    """A processor of diffusers."""

    def __call__(self, attn: nn.Module, x: Tensor, scale: float = 1.0) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return TF.scaled_dot_product_attention(x, x, x, scale=scale)

        return attend(attn(x))


class Eager:
    def __call__(self, attn: nn.Module, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ attn(x)


class WithWeights(nn.Module):
    def forward(self, attn: nn.Module, x: Tensor) -> Tensor:
        return TF.scaled_dot_product_attention(x, x, x)


class Model(nn.Module):
    """A model of diffusers, as far as processors go."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.attn = nn.Linear(8, 8)
        self.processor = processor

    @property
    def attn_processors(self) -> dict[str, Any]:
        return {"attn.processor": self.processor}

    def set_attn_processor(self, processors: dict[str, Any]) -> None:
        self.processor = processors.pop("attn.processor")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.processor(self.attn, x)
        return out


def made(kind: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if kind == "timm":
        model: nn.Module = nn.Sequential(Fused(), nn.Linear(8, 8), Fused())
        return model, timm.apply
    return Model(Processor()), diffusers.set_processor


@pytest.mark.parametrize("kind", ["timm", "diffusers"])
def test_the_same_numbers_by_fulgurite(kind: str) -> None:
    torch._dynamo.reset()
    model, apply = made(kind)
    x = torch.randn(2, 3, 5, 8)
    expected, state = model(x), model.state_dict()
    applied = apply(model)
    assert applied.replaced == ({"Fused": 2} if kind == "timm" else {"Processor": 1})
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for led in (model, copy.deepcopy(model), saved(model)):
        with Seen() as seen:
            out = led(x)
            out.sum().backward()
        assert seen.served
        assert "fulgurite::_attention_backward" in seen.names
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(compiled(x), expected)
    assert list(model.state_dict()) == list(state)
    applied.restore()
    applied.restore()
    with Seen() as seen:
        assert torch.equal(model(x), expected)
    assert not any(name.startswith("fulgurite") for name in seen.names)


@pytest.mark.parametrize("kind", ["timm", "diffusers"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_either_of_two_calls_leads_back(kind: str, order: tuple[int, int]) -> None:
    model, apply = made(kind)
    types, state = [type(module) for module in model.modules()], str(vars(model))
    applied = [apply(model), apply(model)]
    assert applied[0].replaced == applied[1].replaced != {}
    for which in order:
        applied[which].restore()
        assert [type(module) for module in model.modules()] == types
        assert str(vars(model)) == state
    if kind == "timm":
        assert not any(module.fused_attn for module in model if isinstance(module, Fused))


@pytest.mark.parametrize("kind", ["timm", "diffusers"])
def test_a_copy_leads_back_the_copy(kind: str) -> None:
    model, apply = made(kind)
    copied, applied = copy.deepcopy((model, apply(model)))
    applied.restore()
    x = torch.randn(2, 3, 5, 8)
    for led, served in ((model, True), (copied, False)):
        with Seen() as seen:
            led(x)
        assert seen.served is served


@pytest.mark.parametrize("apply", [timm.apply, diffusers.set_processor])
def test_no_module_is_a_type_error(apply: Any) -> None:
    for other in ("x", None):
        with pytest.raises(TypeError, match=f"expected a .*got {type(other).__name__}"):
            apply(other)


def test_only_inside() -> None:
    model, apply = made("timm")
    apply(model)
    x = torch.randn(1, 2, 4, 8)
    model(x)
    with Seen() as seen:
        TF.scaled_dot_product_attention(x, x, x)
    assert not seen.served
    assert isinstance(model[0], Fused)


def test_processors_show_the_arguments_of_the_inner_one() -> None:
    """diffusers passes on the arguments that a processor names."""
    names = list(inspect.signature(diffusers.AttnProcessor(Processor()).__call__).parameters)
    assert names == ["attn", "x", "scale"]


@pytest.mark.parametrize(
    ("apply", "model", "message"),
    [
        (timm.apply, nn.Linear(2, 2), "a fused_attn flag, got none in Linear"),
        (timm.apply, Flagged(), "expected scaled_dot_product_attention in Flagged"),
        (diffusers.set_processor, nn.Linear(2, 2), "attn_processors, got none in Linear"),
        (diffusers.set_processor, Model(Eager()), "calls scaled_dot_product_attention, got Eager"),
        (diffusers.set_processor, Model(WithWeights()), "without weights, got WithWeights"),
    ],
)
def test_what_cannot_be_led_raises(apply: Any, model: nn.Module, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        apply(model)
