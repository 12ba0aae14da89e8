"""Text models of transformers with caches, padding and packed documents, under both names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fulgurite.integrations.transformers as ft
from fulgurite.nn import tree_depths, tree_mask, tree_parents
from integrations.transformers_models import assert_alike, made, outcome
from seen import Seen

FLASH = "fulgurite_flash"


def generated(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    tokens: Tensor = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **options
    )
    return tokens


GENERATING = (
    "chameleon", "deepseek_v3", "falcon_mamba", "gpt_oss", "jamba", "mistral", "mixtral",
    "qwen2_vl", "qwen3_moe", "switch", "t5",
)  # fmt: skip
DECODERS = ("switch", "t5")  # behind an encoder


def prompts(name: str) -> list[dict[str, Any]]:
    """One with padding on the left, one without; with images where the model sees."""
    if name == "qwen2_vl":
        return [made(name)[1]]
    ids = torch.randint(5, 50, (2, 9))
    keep = torch.ones_like(ids)
    padded = keep.clone()
    padded[0, :3] = 0
    return [{"input_ids": ids, "attention_mask": mask} for mask in (padded, keep)]


@pytest.mark.parametrize("implementation", ["fulgurite", FLASH])
@pytest.mark.parametrize(
    "name", ["llama", "mamba", *(pytest.param(name, marks=pytest.mark.full) for name in GENERATING)]
)
def test_generation_from_caches(name: str, implementation: str) -> None:
    if (name, implementation) == ("gpt_oss", FLASH):
        pytest.skip("transformers puts a kernel of its own in place of every flash name here")
    ft.register()
    model, _ = made(name)
    model = model.float().eval()
    for given in prompts(name):
        given = {k: x.float() if x.is_floating_point() else x for k, x in given.items()}
        model.set_attn_implementation("eager")
        expected = generated(model, given)
        model.set_attn_implementation(implementation)
        applied = ft.apply(model)  # the name stays, experts are led too
        assert torch.equal(generated(model, given), expected)
        # Under FLASH a decoder has no mask that says how much is written.
        if not (name in DECODERS and implementation == FLASH):
            static = generated(model, given, cache_implementation="static", disable_compile=True)
            assert torch.equal(static, expected)
        applied.restore()


@pytest.mark.parametrize("numbers", [False, True], ids=["bool", "numbers"])
def test_a_tree_of_candidates_behind_a_cache(numbers: bool) -> None:
    """Medusa's: one pass over all candidates, as the released class gives it and as every path."""
    ft.register()
    model, inputs = made("llama")
    ids = inputs["input_ids"][:1]
    past, parents = ids.shape[1], tree_parents([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
    nodes = torch.randint(3, 50, (1, len(parents)))
    keep = tree_mask(parents, past)
    added = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -1e30)

    def verified(mask: Tensor) -> Tensor:
        cache = model(ids, use_cache=True).past_key_values
        positions = past + tree_depths(parents)[None]
        out = model(nodes, attention_mask=mask, position_ids=positions, past_key_values=cache)
        logits: Tensor = out.logits
        return logits

    expected = verified(added)
    model.set_attn_implementation("fulgurite")
    got = verified(added if numbers else keep)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for node, sees in enumerate(keep[0, 0, :, past:]):
        path = model(torch.cat([ids, nodes[:, sees]], 1)).logits[:, -1]
        torch.testing.assert_close(got[:, node], path, rtol=1e-5, atol=1e-5)


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
