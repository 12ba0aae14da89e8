"""apply(rotary=True): the released rotations by ``rope``, class by class and in whole models."""

from __future__ import annotations

import copy
import importlib
import io

import pytest
import torch
import transformers as hf

import fulgurite.integrations.transformers as ft
from fulgurite.integrations.transformers import classes, rotary
from integrations.transformers_models import TEXT, assert_alike, made, outcome
from seen import Seen

LED = ["llama", "qwen3_moe"]
LED += [
    pytest.param(n, marks=pytest.mark.full) for n in ("chameleon", "gpt_oss", "mistral", "mixtral")
]


@pytest.mark.parametrize("released", classes.ROTARY)
def test_every_class_of_the_table_rotates_as_ours(released: str) -> None:
    file, _, name = released.rpartition(".")
    base = getattr(importlib.import_module(file), name)
    served = classes.rotary_subclass_for(base)
    assert issubclass(served, base)
    assert getattr(rotary, served.__name__) is served
    assert rotary.ROTATION in base.forward.__code__.co_names
    theirs = base.forward.__globals__[rotary.ROTATION]
    assert served.forward.__globals__[rotary.ROTATION] is rotary.apply_rotary_pos_emb
    q, k = (torch.randn(2, 5, heads, 8).double().transpose(1, 2) for heads in (4, 2))
    half = torch.randn(2, 5, 4).double()
    angles = half if "gpt_oss" in released else torch.cat((half, half), -1)
    for got, expected in zip(
        rotary.apply_rotary_pos_emb(q, k, angles.cos(), angles.sin()),
        theirs(q, k, angles.cos(), angles.sin()),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", LED)
def test_models(name: str) -> None:
    model, inputs = made(name)
    expected = outcome(model, inputs)
    replaced = ft.apply(model).replaced
    applied = ft.apply(model, rotary=True)
    assert applied.replaced == replaced
    layers = next(count for cls, count in replaced.items() if cls.endswith("Attention"))
    with Seen() as seen:
        got = outcome(model, inputs)
    assert seen.count("rope") == 4 * layers  # query and key, and their gradients
    assert seen.count("attention") == layers
    assert_alike(got, expected)
    assert_alike(outcome(copy.deepcopy(model), inputs), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_alike(outcome(torch.load(file, weights_only=False), inputs), expected)
    model.gradient_checkpointing_enable()
    assert_alike(outcome(model.train(), inputs), expected)
    model.gradient_checkpointing_disable()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_alike(
        outcome(compiled, inputs),
        (expected[0], {f"_orig_mod.{n}": g for n, g in expected[1].items()}),
    )
    applied.restore()
    with Seen() as seen:
        assert torch.equal(outcome(model.eval(), inputs)[0], expected[0])
    assert not seen.count("rope")


def test_rotary_alone_and_with_a_cache() -> None:
    model, _ = made("llama")
    ids = torch.randint(3, 50, (2, 7))
    released = model.eval().generate(ids, max_new_tokens=6, do_sample=False, use_cache=True)
    assert ft.apply(model, attention=False, rotary=True).replaced == {"LlamaAttention": 2}
    assert model.config._attn_implementation == "eager"
    assert torch.equal(
        model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True), released
    )


def test_another_way_of_rotating_is_refused() -> None:
    model = hf.CohereModel(hf.CohereConfig(**TEXT))
    with pytest.raises(
        NotImplementedError,
        match=r"rotary of CohereAttention cannot be replaced: pass rotary=False",
    ):
        ft.apply(model, rotary=True)
    assert ft.apply(model).replaced == {"CohereAttention": 2}
