"""Models of transformers before and after apply(): numbers, gradients, operators, copies.

Four classes always; the others exhaustively (``FULGURITE_FULL=1``).
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fulgurite.integrations.transformers as ft
from integrations.transformers_models import (
    MODELS,
    Outcome,
    assert_alike,
    made,
    outcome,
)
from seen import Seen

# What mixes positions, and its gradients.
MIXING = ("attention", "attention_varlen", "selective_scan", "_selective_scan_forward")
BACKWARD = ("_attention_backward", "_attention_varlen_backward", "_selective_scan_backward")
TAKES_NAMES_ALONE = ("falcon_mamba", "jamba", "mamba", "swinv2")  # and stays as it is
SOFTMAX_OF_ROUTERS = {"jamba": 2, "switch": 4}  # that are not replaced
ROUTED = ("deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe")
REPLACED = {
    "chameleon": {"ChameleonAttention": 2},
    "deepseek_v3": {"DeepseekV3Attention": 2, "DeepseekV3Experts": 1, "DeepseekV3TopkRouter": 1},
    "falcon_mamba": {"FalconMambaMixer": 2},
    "detr": {"DetrSelfAttention": 4, "DetrCrossAttention": 2},
    "gpt_oss": {"GptOssAttention": 2, "GptOssExperts": 2, "GptOssTopKRouter": 2},
    "jamba": {"JambaAttention": 1, "JambaExperts": 1, "JambaMambaMixer": 1},
    "llama": {"LlamaAttention": 2},
    "mamba": {"MambaMixer": 2},
    "mistral": {"MistralAttention": 2},
    "mixtral": {"MixtralAttention": 2, "MixtralExperts": 2, "MixtralTopKRouter": 2},
    "qwen2_vl": {"Qwen2VLAttention": 2, "VisionAttention": 2},
    "qwen3_moe": {"Qwen3MoeAttention": 2, "Qwen3MoeExperts": 2, "Qwen3MoeTopKRouter": 2},
    "sam_hq_vision": {"SamHQVisionAttention": 2},
    "sam_vision": {"SamVisionAttention": 2},
    "sam_vision_sdpa": {"SamVisionSdpaAttention": 2},
    "swin": {"SwinAttention": 3},
    "swinv2": {"Swinv2SelfAttention": 3},
    "switch": {"SwitchTransformersAttention": 6, "SwitchTransformersSparseMLP": 2},
    "t5": {"T5Attention": 6},
}


def each_model(*quick: str) -> pytest.MarkDecorator:
    marks = {name: [] if name in quick else [pytest.mark.full] for name in MODELS}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks[n]) for n in MODELS])


names = each_model("llama", "qwen3_moe", "swinv2", "mamba")


def applied(name: str) -> tuple[Any, dict[str, Any], Outcome, ft.Applied]:
    model, inputs = made(name)
    expected = outcome(model, inputs)
    return model, inputs, expected, ft.apply(model, routers=name in ROUTED)


@names
def test_numbers_gradients_and_the_way_back(name: str) -> None:
    model, inputs = made(name)
    classes = [type(module) for module in model.modules()]
    expected = outcome(model, inputs)
    state = {key: (x.data_ptr(), x.shape) for key, x in model.state_dict().items()}
    done = ft.apply(model, routers=name in ROUTED)
    assert done.replaced == REPLACED[name]
    assert all(isinstance(m, cls) for m, cls in zip(model.modules(), classes, strict=True))
    assert {key: (x.data_ptr(), x.shape) for key, x in model.state_dict().items()} == state
    assert_alike(outcome(model, inputs), expected)
    done.restore()
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(outcome(model, inputs)[0], expected[0])


@names
def test_operators_of_a_training_step(name: str) -> None:
    model, inputs, _, done = applied(name)
    with Seen() as seen:
        outcome(model, inputs)
    layers = sum(count for cls, count in done.replaced.items() if "Attention" in cls)
    experts = sum(n for cls, n in done.replaced.items() if cls.endswith(("Experts", "SparseMLP")))
    routers = sum(count for cls, count in done.replaced.items() if cls.endswith("Router"))
    scans = sum(count for cls, count in done.replaced.items() if cls.endswith("Mixer"))
    assert seen.count("selective_scan", "_selective_scan_forward") == scans
    assert seen.count("causal_conv1d") == scans
    assert seen.count("_selective_scan_backward", "_causal_conv1d_backward") == 2 * scans
    assert seen.count("attention", "attention_varlen") >= layers
    assert seen.count("_attention_backward", "_attention_varlen_backward") >= layers
    assert seen.count("moe_experts", "_moe_experts_forward") == experts
    assert seen.count("_moe_experts_backward") == experts
    assert seen.count("moe_route") == seen.count("_moe_route_backward") == routers
    torchs = ("scaled_dot_product", "grouped_mm", "index_add")
    assert not [n for n in seen.names if any(word in n for word in torchs)]
    assert sum("_softmax" in n for n in seen.names) == SOFTMAX_OF_ROUTERS.get(name, 0)


@names
def test_copies(name: str, tmp_path: Path) -> None:
    model, inputs, expected, _ = applied(name)
    assert_alike(outcome(copy.deepcopy(model), inputs), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_alike(outcome(torch.load(file, weights_only=False), inputs), expected)
    model.save_pretrained(tmp_path)
    names = dict.fromkeys(("attn_implementation", "experts_implementation"), "fulgurite")
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64, **names).eval()
    if name in TAKES_NAMES_ALONE:
        ft.apply(again)
    with Seen() as seen, torch.no_grad():
        torch.testing.assert_close(
            again(**inputs)[0], model.eval()(**inputs)[0], rtol=1e-5, atol=1e-5
        )
    assert seen.count(*MIXING) > 0
    assert not any("grouped_mm" in n or "scaled_dot" in n for n in seen.names)


@names
def test_gradient_checkpointing(name: str) -> None:
    model, inputs, expected, _ = applied(name)
    model.gradient_checkpointing_enable()
    with Seen() as seen:
        assert_alike(outcome(model.train(), inputs), expected)
    assert seen.count(*MIXING) > seen.count(*BACKWARD)


@each_model("qwen3_moe")
def test_compiled_whole(name: str) -> None:
    model, inputs, expected, _ = applied(name)
    if name == "detr":  # its training branches on infinities
        model.eval()
    if name == "qwen2_vl":  # otherwise as many calls as there are images
        model.set_attn_implementation({"": "fulgurite", "vision_config": "fulgurite_flash"})
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if name == "qwen2_vl":  # places images by a count of tokens
        compiled = torch.compile(model.model.visual, fullgraph=True, backend="aot_eager")
        inputs = {"hidden_states": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}
        expected = outcome(model.model.visual, inputs)
    assert_alike(outcome(compiled, inputs), prefixed(expected, "_orig_mod."))


def prefixed(expected: Outcome, prefix: str) -> Outcome:
    return expected[0], {prefix + name: grad for name, grad in expected[1].items()}


@each_model()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    model, inputs = made(name)
    exact, _ = outcome(model, inputs)
    model = model.to(dtype)
    cast = {k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs.items()}
    eager, _ = outcome(model, cast)
    ft.apply(model, routers=name in ROUTED)
    got, _ = outcome(model, cast)
    assert got.dtype == eager.dtype
    error, of_eager = ((x.double() - exact).norm() for x in (got, eager))
    assert error <= 1.25 * of_eager


@each_model("qwen3_moe")
def test_autocast(name: str) -> None:
    """Float32 weights: as near to the exact numbers as the released class. Where a relu turns, a
    gradient is another one, so that those are compared loosely."""
    model, inputs = made(name)
    exact = outcome(model, inputs)
    model = model.float()
    cast = {k: x.float() if x.is_floating_point() else x for k, x in inputs.items()}

    def distances() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out, grads = outcome(model, cast)
        apart = [(grads[key].double() - grad).norm() for key, grad in exact[1].items()]
        return (out.double() - exact[0]).norm(), torch.stack(apart).norm()

    of_out, of_grads = distances()
    ft.apply(model, routers=name in ROUTED)
    with Seen() as seen:
        out, grads = distances()
    assert out <= 1.25 * of_out
    assert grads <= 2 * of_grads
    assert seen.count(*MIXING) > 0
