"""Mamba's layers of transformers on the operators: caches, pieces, what is read and not called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import fulgurite.integrations.transformers as ft
from integrations.transformers_models import assert_alike, made, outcome
from seen import Seen

each_kind = pytest.mark.parametrize("name", ["mamba", "falcon_mamba"])


def led(name: str) -> tuple[Any, Tensor]:
    model, inputs = made(name)
    ft.apply(model)
    return model.eval(), inputs["input_ids"]


@each_kind
def test_one_token_at_a_time_equals_one_call(name: str) -> None:
    model, ids = led(name)
    released = made(name)[0].eval()
    with torch.no_grad():
        expected = released(ids).logits
        caches: list[Any] = [m(ids[:, :2], use_cache=True).cache_params for m in (model, released)]
        for t in range(2, ids.shape[1]):
            with Seen() as seen:
                got = model(ids[:, t : t + 1], cache_params=caches[0], use_cache=True)
            theirs = released(ids[:, t : t + 1], cache_params=caches[1], use_cache=True)
            torch.testing.assert_close(got.logits[:, 0], expected[:, t], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got.logits, theirs.logits, rtol=1e-5, atol=1e-5)
            assert seen.count("selective_scan") == seen.count("causal_conv1d") == 2
    for ours, other in zip(*(cache.layers for cache in caches), strict=True):
        for states in ("conv_states", "recurrent_states"):
            a, b = getattr(ours, states)[0], getattr(other, states)[0]
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each_kind
def test_a_prompt_in_pieces_equals_one_call(name: str) -> None:
    model, ids = led(name)
    with torch.no_grad():
        expected, cache, pieces = model(ids).logits, None, []
        for part in ids.split([2, 5, 1, 3], 1):
            out = model(part, cache_params=cache, use_cache=True)
            pieces, cache = [*pieces, out.logits], out.cache_params
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_carry_their_states(beams: int) -> None:
    model, inputs = made("mamba")
    model = model.float().eval()
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    options |= {"pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(**inputs, **options)
    applied = ft.apply(model)
    assert torch.equal(model.generate(**inputs, **options), expected)
    applied.restore()


def test_a_layer_alone_and_another_activation() -> None:
    config = hf.MambaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4, hidden_act="gelu",
        use_bias=True, use_conv_bias=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.MambaModel(config).double()
    inputs = {"input_ids": torch.randint(50, (2, 9))}
    expected = outcome(model, inputs)
    applied = ft.apply(model.layers[0])
    assert applied.replaced == {"MambaMixer": 1}
    with Seen() as seen:
        assert_alike(outcome(model, inputs), expected)
    assert seen.count("_selective_scan_forward") == 1


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def adapt(layer: Any) -> None:
    layer.dt_proj = Adapted(layer.dt_proj.in_features, layer.dt_proj.out_features).double()


@each_kind
def test_an_adapted_projection_that_is_read_raises(name: str) -> None:
    message = r"dt_proj of \w+: expected a plain nn.Linear, got .*\.Adapted: merge"
    model, inputs = made(name)
    adapt(model.backbone.layers[1].mixer)
    with pytest.raises(NotImplementedError, match=message):
        ft.apply(model)
    model, _ = led(name)
    adapt(model.backbone.layers[1].mixer)
    with pytest.raises(NotImplementedError, match=message):
        model(**inputs)


def test_hooks_of_accelerate_are_fired() -> None:
    """They may bring the weights that are read."""
    model, inputs = made("mamba")
    expected = outcome(model, inputs)
    ft.apply(model)

    class Brings:
        def __init__(self, weight: Tensor) -> None:
            self.weight = weight.detach().clone()
            weight.data.zero_()

        def pre_forward(self, module: Any) -> None:
            module.weight.data.copy_(self.weight)

        def post_forward(self, module: Any, _out: Any) -> None:
            module.weight.data.zero_()

    layer: Any = model.backbone.layers[0].mixer
    layer.conv1d._hf_hook = Brings(layer.conv1d.weight)
    layer.dt_proj._hf_hook = Brings(layer.dt_proj.weight)
    with torch.no_grad():
        got = model(**inputs).logits
    torch.testing.assert_close(got, expected[0], rtol=1e-5, atol=1e-5)
    assert layer.dt_proj.weight.count_nonzero() == 0
