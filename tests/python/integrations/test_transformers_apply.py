"""What register() and apply() change, and what they refuse."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import masking_utils, modeling_flash_attention_utils, modeling_utils
from transformers.integrations import moe

import fulgurite.integrations.transformers as ft
from fulgurite.integrations.transformers.experts import experts
from integrations.transformers_models import TEXT, made, outcome, switch
from seen import Seen

FLASH = "fulgurite_flash"


@pytest.mark.full
def test_nothing_is_imported_before_a_call() -> None:
    program = (
        "import sys, fulgurite.nn, fulgurite.integrations.transformers as ft\n"
        "assert not {'transformers', 'timm', 'diffusers'} & set(sys.modules)\n"
        "sys.modules['transformers'] = None\n"
        "try:\n    ft.register()\n"
        "except ImportError as error:\n    assert 'expected transformers' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_register_puts_names_into_tables_and_nothing_else() -> None:
    ft.register()
    functions = dict(modeling_utils.ALL_ATTENTION_FUNCTIONS)
    loaders = [
        file.lazy_import_flash_attention
        for file in (modeling_utils, modeling_flash_attention_utils)
    ]
    ft.register()
    assert dict(modeling_utils.ALL_ATTENTION_FUNCTIONS) == functions
    masks = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    assert masks["fulgurite"] is masking_utils.sdpa_mask
    assert masks[FLASH] is masking_utils.flash_attention_mask
    assert moe.ALL_EXPERTS_FUNCTIONS["fulgurite"] is experts
    for file, loader in zip((modeling_utils, modeling_flash_attention_utils), loaders, strict=True):
        assert file.lazy_import_flash_attention is loader
        assert loader(FLASH) is None
        with pytest.raises((ImportError, ValueError)):
            loader("flash_attention_2")
    for file, table, base in (
        ("sam", "SAM_VISION_ATTENTION_CLASSES", "SamVisionAttention"),
        ("sam_hq", "SAM_HQ_VISION_ATTENTION_CLASSES", "SamHQVisionAttention"),
    ):
        module = importlib.import_module(f"transformers.models.{file}.modeling_{file}")
        assert issubclass(getattr(module, table)["fulgurite"], getattr(module, base))


def test_a_version_without_a_table_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(moe, "ALL_EXPERTS_FUNCTIONS")
    with pytest.raises(ImportError, match=r"without transformers.integrations.moe.ALL_EXPERTS"):
        ft.register()


def test_names_come_back() -> None:
    model, inputs = made("llama")
    model.set_attn_implementation("sdpa")
    expected = outcome(model, inputs)
    applied = ft.apply(model)
    assert model.config._attn_implementation == "fulgurite"
    assert applied.replaced == {"LlamaAttention": 2}
    applied.restore()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(outcome(model, inputs)[0], expected[0])
    model.set_attn_implementation("eager")
    applied.restore()
    assert model.config._attn_implementation == "eager"


def test_the_flash_name_stays_where_the_user_set_it() -> None:
    ft.register()
    model, _ = made("llama")
    model.set_attn_implementation(FLASH)
    ft.apply(model)
    assert model.config._attn_implementation == FLASH


def test_a_model_inside_of_a_module_and_a_layer_alone() -> None:
    model, _ = made("qwen3_moe")
    assert ft.apply(nn.ModuleDict({"policy": model}), attention=False).replaced == {
        "Qwen3MoeExperts": 2
    }
    assert model.config._attn_implementation == "eager"
    layers = model.model.layers
    applied = ft.apply(layers[0])
    assert applied.replaced == {"Qwen3MoeAttention": 1, "Qwen3MoeExperts": 1}
    names = [layer.self_attn.config._attn_implementation for layer in layers]
    assert names == ["fulgurite", "eager"]
    applied.restore()
    assert layers[0].self_attn.config is model.config


def unserved() -> dict[str, tuple[Callable[[], Any], dict[str, bool], str]]:
    bloom = hf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)
    mamba = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    olmoe = {**TEXT, "num_experts": 4, "num_experts_per_tok": 2}
    return {
        "nothing in it": (lambda: nn.Linear(2, 2), {}, "parts that can be replaced, got Linear"),
        "attention of its own": (
            lambda: hf.BloomModel(bloom),
            {},
            "attention of BloomAttention cannot be replaced: pass attention=False",
        ),
        "nothing asked for": (
            lambda: hf.LlamaModel(hf.LlamaConfig(**TEXT)),
            {"attention": False},
            "got LlamaModel",
        ),
        "scans": (
            lambda: hf.Mamba2Model(hf.Mamba2Config(**mamba, num_heads=4, head_dim=8)),
            {},
            "scans of Mamba2Mixer cannot be replaced: pass scans=False",
        ),
        "scans, and none asked for": (
            lambda: hf.MambaModel(hf.MambaConfig(**mamba)),
            {"scans": False},
            "got MambaModel$",
        ),
        "dropout of Switch's experts": (lambda: switch(0.1)[0], {}, "experts without dropout"),
        "another router": (
            lambda: hf.OlmoeModel(hf.OlmoeConfig(**olmoe)),
            {"routers": True},
            "routers of OlmoeTopKRouter cannot be replaced: pass routers=False",
        ),
    }


UNSERVED = unserved()


@pytest.mark.full
@pytest.mark.parametrize("case", UNSERVED)
def test_what_cannot_be_replaced_raises_and_changes_nothing(case: str) -> None:
    make, options, message = UNSERVED[case]
    model = make()
    classes = [type(module) for module in model.modules()]
    before = str(getattr(model, "config", None))
    with pytest.raises(NotImplementedError, match=message):
        ft.apply(model, **options)
    assert [type(module) for module in model.modules()] == classes
    assert str(getattr(model, "config", None)) == before


@pytest.mark.full
def test_parts_that_are_not_asked_for_stay() -> None:
    model = switch(0.1)[0]
    assert ft.apply(model, experts=False).replaced == {"SwitchTransformersAttention": 6}


def test_weights_of_attention_raise() -> None:
    for name in ("llama", "swinv2"):
        model, inputs = made(name)
        ft.apply(model)
        with pytest.raises(NotImplementedError, match="output_attentions=True"):
            model(**inputs, output_attentions=True)


@pytest.mark.full
def test_a_recorded_output_stays_recorded() -> None:
    model, inputs = made("mixtral")
    options = {"output_hidden_states": True, "output_router_logits": True}
    expected = model(**inputs, **options, labels=inputs["input_ids"])
    ft.apply(model, routers=True)
    got = model(**inputs, **options, labels=inputs["input_ids"])
    assert len(got.router_logits) == 2
    for a, b in zip(got.router_logits, expected.router_logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-5)
    assert len(got.hidden_states) == len(expected.hidden_states)


@pytest.mark.full
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "fulgurite"])
def test_the_whole_of_sam(implementation: str) -> None:
    ft.register()
    small = {"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 48}
    vision = small | {
        "num_pos_feats": 16,
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 4,
        "window_size": 3,
    }
    config = hf.SamConfig(
        vision_config=vision | {"output_channels": 32, "global_attn_indexes": [1]},
        prompt_encoder_config={"hidden_size": 32, "image_size": 32, "patch_size": 4},
        mask_decoder_config=small | {"num_hidden_layers": 2, "iou_head_hidden_dim": 16},
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    model = hf.SamModel(config).double()
    inputs = {
        "pixel_values": torch.randn(1, 3, 32, 32).double(),
        "input_points": torch.rand(1, 1, 2, 2).double() * 32,
    }
    expected = model(**inputs).pred_masks
    done = ft.apply(model)
    assert sum(n for name, n in done.replaced.items() if name.startswith("SamVision")) == 2
    assert done.replaced["SamAttention"] > 0
    with Seen() as seen:
        got = model(**inputs).pred_masks
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert seen.count("attention") == sum(done.replaced.values())


@pytest.mark.full
def test_a_saved_module_in_another_process() -> None:
    model, inputs = made("swinv2")
    ft.apply(model)
    file = io.BytesIO()
    torch.save((model, inputs, outcome(model, inputs)[0]), file)
    program = (
        "import io, sys, torch\n"
        "file = io.BytesIO(sys.stdin.buffer.read())\n"
        "model, inputs, expected = torch.load(file, weights_only=False)\n"
        "assert torch.equal(model(**inputs)[0], expected)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, input=file.getvalue())
