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
from transformers import masking_utils
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


def test_models_without_flash_attention_refuse_the_flash_name() -> None:
    ft.register()
    config = hf.DogeConfig(**TEXT)
    message = 'DogeForCausalLM does not support flash attention, so not "fulgurite_flash": use'
    model = hf.DogeForCausalLM(config)
    with pytest.raises(NotImplementedError, match=message):
        model.set_attn_implementation(FLASH)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(NotImplementedError, match=message):
        hf.DogeForCausalLM._from_config(config, attn_implementation=FLASH)
    model.set_attn_implementation("fulgurite")


CONFIG = hf.LlamaConfig(**TEXT | {"attn_implementation": FLASH})


def flash_mask(batch: int = 2, **options: Any) -> Any:
    rows = torch.zeros(batch, 8, 32)
    return masking_utils.create_causal_mask(CONFIG, rows, None, None, **options)


def test_masks_of_pairs_refuse_the_flash_name() -> None:
    ft.register()
    assert flash_mask() is None
    for options in (
        {"block_sequence_ids": torch.zeros(2, 8, dtype=torch.int64)},
        {"or_mask_function": lambda b, h, q, k: k < 3},
        {"and_mask_function": lambda b, h, q, k: k % 2 == 0},
    ):
        with pytest.raises(NotImplementedError, match="cannot hold this model's mask of pairs"):
            flash_mask(**options)
        compiled = torch.compile(flash_mask, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="cannot hold this model"):
            compiled(**options)


def test_documents_in_several_rows_refuse_the_flash_name() -> None:
    ft.register()
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    assert flash_mask(batch=1, position_ids=positions) is None
    assert flash_mask(position_ids=torch.arange(8).expand(2, -1)) is None
    with pytest.raises(NotImplementedError, match="in a batch of 1, got 2: put all documents into"):
        flash_mask(position_ids=positions.expand(2, -1))


def test_a_window_that_its_mask_reaches_past_refuses_the_flash_name() -> None:
    ft.register()
    sizes = {**TEXT, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2}
    parts = {part: hf.T5GemmaModuleConfig(**sizes) for part in ("encoder", "decoder")}
    model = hf.T5GemmaForConditionalGeneration(hf.T5GemmaConfig(**parts))
    model.set_attn_implementation(FLASH)
    ids = torch.randint(3, 50, (2, 9))
    with pytest.raises(NotImplementedError, match="T5GemmaSelfAttention says another window"):
        model(input_ids=ids, decoder_input_ids=ids)


@pytest.mark.parametrize("name", ["llama", pytest.param("mistral", marks=pytest.mark.full)])
def test_padding_under_the_flash_name_compiles_whole(name: str) -> None:
    ft.register()
    model, inputs = made(name)
    keep = torch.ones_like(inputs["input_ids"])
    keep[0, :4] = 0
    model.set_attn_implementation("sdpa")
    expected = model(**inputs, attention_mask=keep).logits
    model.set_attn_implementation(FLASH)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = compiled(**inputs, attention_mask=keep).logits
    torch.testing.assert_close(got[keep > 0], expected[keep > 0], rtol=1e-5, atol=1e-5)


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
