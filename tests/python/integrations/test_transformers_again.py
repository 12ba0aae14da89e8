"""apply() on what it has led before, on parts and copies of a model, and on what is no model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import fulgurite.integrations.transformers as ft
from integrations.transformers_models import made
from seen import Seen


def served(model: nn.Module, inputs: dict[str, Any]) -> int:
    with Seen() as seen, torch.no_grad():
        model(**inputs)
    return sum(name.startswith("fulgurite::") for name in seen.names)


def state(model: Any) -> list[Any]:
    """What apply() changes, and that it leaves no traces."""
    names = [
        (module.config._attn_implementation, module.config._experts_implementation)
        for module in model.modules()
        if hasattr(module, "config")
    ]
    return [*names, *(type(module) for module in model.modules()), *map(sorted, traces(model))]


def traces(model: nn.Module) -> list[set[str]]:
    return [set(vars(module)) for module in model.modules()]


@pytest.mark.parametrize("name", ["mamba", "mixtral", "swinv2"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_either_of_two_calls_leads_back(name: str, order: tuple[int, int]) -> None:
    model, inputs = made(name)
    released = state(model)
    routers = name == "mixtral"
    applied = [ft.apply(model, routers=routers), ft.apply(model, routers=routers)]
    assert applied[0].replaced == applied[1].replaced
    assert served(model, inputs)
    for which in order:
        applied[which].restore()
        assert state(model) == released
        assert not served(model, inputs)


def test_the_first_result_may_be_dropped() -> None:
    model, _ = made("mixtral")
    released = state(model)
    ft.apply(model)
    ft.apply(copy.deepcopy(model)).restore()
    assert model.config._attn_implementation == "fulgurite"
    ft.apply(model, routers=True).restore()
    assert state(model) == released


def test_parts_come_back_one_by_one() -> None:
    model, _ = made("mixtral")
    released = state(model)
    both, experts = ft.apply(model), ft.apply(model, attention=False)
    experts.restore()
    assert model.config._attn_implementation == "fulgurite"
    assert model.config._experts_implementation != "fulgurite"
    both.restore()
    assert state(model) == released


def test_one_layer_and_then_the_model() -> None:
    model, inputs = made("llama")
    released = state(model)
    one = ft.apply(model.model.layers[0])
    assert one.replaced == {"LlamaAttention": 1}
    assert served(model, inputs) == 1
    whole = ft.apply(model)
    assert served(model, inputs) == 2
    whole.restore()
    assert state(model) == released
    one.restore()
    assert state(model) == released


def test_a_layer_of_a_led_model_leaves_the_model_led() -> None:
    model, inputs = made("llama")
    released = state(model)
    whole = ft.apply(model)
    ft.apply(model.model.layers[0]).restore()
    assert served(model, inputs) == 2
    whole.restore()
    assert state(model) == released


@pytest.mark.parametrize("name", ["mamba", "mixtral", "swinv2"])
def test_a_copy_leads_back_the_copy(name: str) -> None:
    model, inputs = made(name)
    copied, applied = copy.deepcopy((model, ft.apply(model)))
    applied.restore()
    assert served(model, inputs)
    assert not served(copied, inputs)


def test_what_is_no_module_is_a_type_error() -> None:
    for other in ("x", None):
        with pytest.raises(
            TypeError, match=f"expected a torch.nn.Module, got {type(other).__name__}"
        ):
            ft.apply(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("library", ["timm", "diffusers"])
@pytest.mark.parametrize("base", [nn.Linear, hf.BloomModel])
def test_models_of_other_libraries_are_shown_the_way(library: str, base: Any) -> None:
    cls = type("Theirs", (base,), {"__module__": f"{library}.models"})
    args = (2, 2) if base is nn.Linear else (hf.BloomConfig(vocab_size=9, hidden_size=8, n_head=2),)
    with pytest.raises(
        NotImplementedError, match=rf"; fulgurite.integrations.{library}\.\w+ leads"
    ):
        ft.apply(cls(*args))
