"""What register() and apply() change, what they refuse, and the experts function by itself."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import masking_utils, modeling_flash_attention_utils, modeling_utils
from transformers.integrations import moe

import fulgurite.integrations.transformers as ft
from fulgurite.integrations.transformers.experts import experts
from integrations.transformers_models import TEXT, Seen, assert_alike, made, outcome, switch

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
    first = ft.apply(model)
    assert model.config._attn_implementation == "fulgurite"
    second = ft.apply(model)
    assert second.replaced == first.replaced == {"LlamaAttention": 2}
    second.restore()
    assert model.config._attn_implementation == "fulgurite"
    first.restore()
    first.restore()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(outcome(model, inputs)[0], expected[0])


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
    layer = model.model.layers[0].self_attn
    assert ft.apply(layer).replaced == {"Qwen3MoeAttention": 1}
    assert layer.config._attn_implementation == "fulgurite"


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
            lambda: hf.MambaModel(hf.MambaConfig(**mamba)),
            {},
            "scans of MambaMixer have no operator yet",
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


# The experts function by itself.

T, E, K, H, W = 7, 4, 2, 6, 5


def layer(
    act_fn: nn.Module, gate: Callable[..., Tensor] | None = None, **how: bool
) -> tuple[Any, list[Tensor]]:
    """A module like those that use_experts_implementation makes, and its weights."""
    options = {
        "has_gate": True,
        "has_bias": False,
        "is_transposed": False,
        "is_concatenated": True,
        "has_post_expert_norm": False,
    } | how
    rows = 2 * W if options["has_gate"] else W
    shapes = [(E, rows, H), (E, H, W)]
    if options["is_transposed"]:
        shapes = [(E, H, rows), (E, W, H)]
    shapes += [(E, rows), (E, H)] if options["has_bias"] else []
    weights = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    name = "gate_up_proj" if options["has_gate"] else "up_proj"
    names = (name, "down_proj", f"{name}_bias", "down_proj_bias")
    members = {"_apply_gate": gate or moe._default_apply_gate}
    module = type("Layer", (SimpleNamespace,), members)(act_fn=act_fn, num_experts=E, **options)
    module.__dict__.update(zip(names, weights, strict=False))
    module._is_expert_parallel = True
    return module, weights


def interleaved_gate(self: Any, gate_up: Tensor) -> Tensor:
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    return self.act_fn(gate.clamp(max=2.0)) * (up + 0.5)


LAYERS = {
    "silu": (nn.SiLU(), None, {}),
    "silu of transformers": (hf.activations.ACT2FN["silu"], None, {}),
    "gelu": (hf.activations.ACT2FN["gelu"], None, {"has_bias": True}),
    "transposed": (nn.SiLU(), None, {"is_transposed": True, "has_bias": True}),
    "not gated": (hf.activations.ACT2FN["relu2"], None, {"has_gate": False}),
    "an activation of no operator": (nn.Mish(), None, {"has_bias": True}),
    "not gated, of no operator": (nn.Tanh(), None, {"has_gate": False}),
    "a gate of its own": (nn.SiLU(), interleaved_gate, {"is_concatenated": False}),
    "a gate of its own, transposed": (
        nn.SiLU(),
        interleaved_gate,
        {"is_concatenated": False, "is_transposed": True, "has_bias": True},
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_experts_of_every_kind(case: str) -> None:
    act_fn, gate, how = LAYERS[case]
    module, weights = layer(act_fn, gate, **how)
    x = torch.randn(T, H, dtype=torch.float64, requires_grad=True)
    routing = torch.rand(T, K, dtype=torch.float64)
    ids = torch.randint(0, E, (T, K))
    ids[2] = E  # of an expert elsewhere, whose weight is 0 there
    routing[2] = 0.0
    routing.requires_grad_()
    inputs = (x, routing, *weights)
    expected = moe.batched_mm_experts_forward(module, x, ids, routing)
    with Seen() as seen:
        got = experts(module, x, ids, routing)
        incoming = torch.randn_like(got)
        mine = torch.autograd.grad(got, inputs, incoming)
    torch.testing.assert_close(got, expected)
    for a, b in zip(mine, torch.autograd.grad(expected, inputs, incoming), strict=True):
        torch.testing.assert_close(a, b)
    fused = gate is None and "no operator" not in case
    assert seen.count("moe_experts", "_moe_experts_forward") == fused
    assert seen.count("moe_grouped_mm") == (0 if fused else 2)


@pytest.mark.full
@pytest.mark.parametrize("case", LAYERS)
def test_compiled_experts(case: str) -> None:
    act_fn, gate, how = LAYERS[case]
    module, _ = layer(act_fn, gate, **how)
    inputs = torch.randn(T, H).double(), torch.randint(0, E, (T, K)), torch.rand(T, K)
    torch._dynamo.reset()
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(module, *inputs), experts(module, *inputs))


def test_experts_in_autocast_and_with_routing_of_other_dtypes() -> None:
    module, _ = layer(nn.SiLU())
    module.gate_up_proj, module.down_proj = (
        w.detach().float() for w in (module.gate_up_proj, module.down_proj)
    )
    x, ids = torch.randn(T, H), torch.randint(0, E, (T, K))
    expected = experts(module, x, ids, torch.full((T, K), 0.5))
    half = torch.full((T, K), 0.5, dtype=torch.float16)
    torch.testing.assert_close(experts(module, x, ids, half), expected)
    with torch.autocast("cpu", torch.bfloat16):
        got = experts(module, x, ids, half.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_a_norm_behind_every_expert_raises() -> None:
    module, _ = layer(nn.SiLU(), has_post_expert_norm=True)
    with pytest.raises(NotImplementedError, match='experts_implementation="grouped_mm"'):
        experts(module, torch.randn(T, H), torch.zeros(T, K), torch.zeros(T, K))


# Caches and padding: what generate does.


def generated(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    tokens: Tensor = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **options
    )
    return tokens


@pytest.mark.parametrize("implementation", ["fulgurite", FLASH])
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("mistral", "gpt_oss", "t5")),
    ],
)
def test_generation_from_caches(name: str, implementation: str) -> None:
    if (name, implementation) == ("gpt_oss", FLASH):
        pytest.skip("transformers puts a kernel of its own in place of every flash name here")
    ft.register()
    model, _ = made(name)
    model = model.float().eval()
    ids = torch.randint(3, 50, (2, 9))
    keep = torch.ones_like(ids)
    keep[0, :3] = 0
    inputs = {"input_ids": ids, "attention_mask": keep}
    for given in (inputs, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
        model.set_attn_implementation("eager")
        expected = generated(model, given)
        model.set_attn_implementation(implementation)
        assert torch.equal(generated(model, given), expected)
        if (name, implementation) == ("t5", FLASH):
            continue  # the decoder has no mask of two dimensions, which says how much is written
        static = generated(model, given, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, expected)


@pytest.mark.parametrize("implementation", ["fulgurite", FLASH])
def test_several_tokens_behind_a_cache(implementation: str) -> None:
    ft.register()
    model, inputs = made("llama")
    ids = inputs["input_ids"]
    expected = model(ids).logits
    model.set_attn_implementation(implementation)
    first = model(ids[:, :6], use_cache=True)
    rest = model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(rest, expected[:, 6:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["fulgurite", FLASH])
@pytest.mark.parametrize("name", ["llama", pytest.param("mistral", marks=pytest.mark.full)])
def test_packed_documents_of_a_text_model(name: str, implementation: str) -> None:
    ft.register()
    model, _ = made(name)
    ids = torch.randint(3, 50, (1, 11))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 0, 1, 2, 3]])
    starts = torch.tensor([0, 6, 7, 11], dtype=torch.int32)
    packed = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
    packed |= {"max_length_q": 6, "max_length_k": 6}
    inputs = {"input_ids": ids, "position_ids": positions}
    expected = outcome(model, inputs)
    model.set_attn_implementation(implementation)
    assert_alike(outcome(model, inputs), expected)
    with Seen() as seen:
        assert_alike(outcome(model, inputs | packed), expected)
    assert seen.count("attention_varlen") == seen.count("_attention_varlen_backward") == 2


@pytest.mark.full
def test_a_vision_tower_of_the_flash_name_makes_one_packed_call() -> None:
    ft.register()
    model, inputs = made("qwen2_vl")
    expected = outcome(model, inputs)
    names = {"": "fulgurite", "text_config": "fulgurite", "vision_config": FLASH}
    model.set_attn_implementation(names)
    with Seen() as seen:
        assert_alike(outcome(model, inputs), expected)
    assert seen.count("attention", "attention_varlen") == 4
    assert seen.count("attention_varlen") == 2
