"""Layers, masks and releases of transformers whose numbers would be others: all of them raise."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.integrations import moe
from transformers.models.mixtral import modeling_mixtral
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

import fulgurite.integrations.transformers as ft
from fulgurite.nn import MoE
from integrations.transformers_models import TEXT, assert_alike, made, outcome

FLASH = "fulgurite_flash"


class Lora(nn.Module):
    """An adapter that shows the weight of the layer below, as those of libraries do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, 2))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.1


def sparse(model: nn.Module) -> Any:
    return next(
        m for m in model.modules() if isinstance(getattr(m, "experts", None), nn.ModuleDict)
    )


def adapt(expert: Any) -> None:
    expert.wi = Lora(expert.wi)


def derive(expert: Any) -> None:
    expert.wo = Doubling(expert.wo.in_features, expert.wo.out_features, bias=False)


def quantize(expert: Any) -> None:
    expert.wo = torch.ao.nn.quantized.dynamic.Linear(48, 32)


def shift(expert: Any) -> None:
    expert.wi.bias = nn.Parameter(torch.ones(expert.wi.out_features))


ADAPTERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "adapter": (adapt, r"wi: expected a plain nn.Linear, got .*\.Lora: merge"),
    "a class of its own": (derive, r"wo: expected a plain nn.Linear, got .*\.Doubling"),
    "quantized": (quantize, "wo: expected a plain nn.Linear, got torch.ao.nn.quantized"),
    "bias": (shift, "wi: expected a layer without bias"),
    "hook": (lambda e: e.wi.register_forward_hook(lambda *_: None), "wi: .* got _forward_hooks"),
    "hook before": (
        lambda e: e.wo.register_forward_pre_hook(lambda *_: None),
        "wo: .* got _forward_pre_hooks",
    ),
    "hook of an expert": (
        lambda e: e.register_full_backward_hook(lambda *_: None),
        "expert_0 of .* got _backward_hooks",
    ),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_layers_that_are_not_called_raise(case: str) -> None:
    change, message = ADAPTERS[case]
    model, inputs = made("switch")
    adapted = copy.deepcopy(model)
    change(sparse(adapted).experts["expert_0"])
    with pytest.raises(NotImplementedError, match=message):
        ft.apply(adapted)
    ft.apply(model)
    change(sparse(model).experts["expert_0"])
    with pytest.raises(NotImplementedError, match=message):
        model(**inputs)


def test_a_parametrized_weight_is_the_one_that_is_read() -> None:
    model, inputs = made("switch")
    for expert in sparse(model).experts.values():
        parametrize.register_parametrization(expert.wi, "weight", Shifted())
    expected = outcome(model, inputs)
    ft.apply(model)
    assert_alike(outcome(model, inputs), expected)


def test_a_block_with_adapters_is_not_converted() -> None:
    block = sparse(made("switch")[0])
    block.experts["expert_1"].wo = Lora(block.experts["expert_1"].wo)
    with pytest.raises(NotImplementedError, match=r"MoE.from_transformers: wo: expected a plain"):
        MoE.from_transformers(block)
    block = made("deepseek_v3")[0].model.layers[1].mlp
    block.shared_experts.up_proj = Lora(block.shared_experts.up_proj)
    with pytest.raises(NotImplementedError, match=r"up_proj: expected a plain nn.Linear, got"):
        MoE.from_transformers(block)


def test_a_mask_of_its_own_under_the_flash_name() -> None:
    ft.register()
    model = hf.DogeForCausalLM(hf.DogeConfig(**TEXT)).eval()
    ids = torch.randint(3, 50, (2, 9))
    expected = model(ids).logits
    model.set_attn_implementation(FLASH)
    with pytest.raises(NotImplementedError, match="expected no mask of pairs for a causal layer"):
        model(ids)
    model.set_attn_implementation("fulgurite")
    torch.testing.assert_close(model(ids).logits, expected)


def test_documents_in_several_rows_under_the_flash_name() -> None:
    ft.register()
    model, inputs = made("llama")
    model.set_attn_implementation(FLASH)
    rows, N = inputs["input_ids"].shape
    assert rows > 1
    assert N > 4
    positions = torch.arange(N).expand(rows, -1)
    model(inputs["input_ids"], position_ids=positions, use_cache=False)
    with pytest.raises(NotImplementedError, match="start again in a batch of 1 under"):
        model(inputs["input_ids"], position_ids=positions % 4, use_cache=False)


def test_a_window_that_its_mask_reaches_past_refuses_the_flash_name() -> None:
    ft.register()
    sizes = {**TEXT, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2}
    parts = {part: hf.T5GemmaModuleConfig(**sizes) for part in ("encoder", "decoder")}
    model = hf.T5GemmaForConditionalGeneration(hf.T5GemmaConfig(**parts))
    model.set_attn_implementation(FLASH)
    ids = torch.randint(3, 50, (2, 9))
    with pytest.raises(NotImplementedError, match="T5GemmaSelfAttention says another window"):
        model(input_ids=ids, decoder_input_ids=ids)


def test_releases_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mixtral, swin = made("mixtral")[0], made("swinv2")[0]
    with monkeypatch.context() as other:
        other.setattr(moe, "use_experts_implementation", lambda cls, *, has_bias, has_gate: cls)
        with pytest.raises(ImportError, match=r"transformers 5.23, got .* has_post_expert_norm"):
            ft.register()
    with monkeypatch.context() as other:
        other.delitem(sys.modules, "fulgurite.integrations.transformers.routers", raising=False)
        other.delattr(modeling_mixtral, "MixtralTopKRouter")
        with pytest.raises(ImportError, match=r"5.23, got .* name 'MixtralTopKRouter'"):
            ft.apply(mixtral, routers=True)
    with monkeypatch.context() as other:
        other.setattr(Swinv2SelfAttention, "forward", nn.Linear.forward)
        with pytest.raises(ImportError, match="adds its mask 0 times, not 2: pass attention=False"):
            ft.apply(swin)
