"""The memory report: formula, real tensors, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fulgurite
from fulgurite.memory import RECIPES, Transformer, Usage, report
from fulgurite.memory.__main__ import main
from fulgurite.memory.counting import parse_count, tensor_sizes
from fulgurite.optim import AdamW

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "hidden_act": "silu",
}


@pytest.mark.parametrize(
    ("recipe", "gigabytes"),
    [
        ("standard", 112.0),
        ("float32", 112.0),
        ("split", 98.0),
        ("stochastic", 84.0),
        ("split-bf16", 70.0),
        ("standard-8bit", 70.2),
        ("split-8bit", 56.2),
        ("stochastic-bf16", 56.0),
        ("stochastic-8bit", 42.2),
    ],
)
def test_seven_billion_parameters(recipe: str, gigabytes: float) -> None:
    assert RECIPES[recipe].usage([7_000_000_000]).total / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_every_recipe_is_tested() -> None:
    assert len(RECIPES) == 9


def model(dtype: torch.dtype) -> nn.Module:
    """Tensors on both sides of the size from which on moments are codes, and of no whole block."""
    layers = nn.Sequential(nn.Embedding(100, 41), nn.Linear(41, 100), nn.LayerNorm(100))
    layers.append(nn.Linear(100, 37))
    return layers.to(dtype)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_real_tensors_are_what_the_formula_says(recipe: fulgurite.memory.Recipe) -> None:
    net = model(recipe.dtype)
    optimizer = AdamW(net.parameters(), **recipe.options)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    used = report(net, optimizer)
    assert used == recipe.usage(p.numel() for p in net.parameters())
    stored = [*net.parameters(), *(p.grad for p in net.parameters())]
    stored += [value for state in optimizer.state.values() for value in state.values()]
    assert used.total == sum(tensor.untyped_storage().nbytes() for tensor in stored)


def test_torchs_optimizers_copies_averages_and_buffers() -> None:
    net = nn.BatchNorm1d(10)
    sgd = torch.optim.SGD(net.parameters(), momentum=0.9)
    before = report(net, sgd)
    assert before == Usage(weights=80, other=2 * 40 + 8)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    sgd.step()
    assert report(net, sgd) == before + Usage(gradients=80, moments=80)
    copies = [p.detach().bfloat16() for p in net.parameters()]
    ours = AdamW(net.parameters(), ema_decay=0.9, copies=copies, amsgrad=True)
    ours.step()
    own = Usage(gradients=80, moments=3 * 80, other=80 + 8 + 40)
    assert report(net, ours) == before + own
    assert report(net) == before + Usage(gradients=80)


def test_usage_reads_well() -> None:
    text = str(RECIPES["split"].usage([1_000_000_000]))
    assert text.splitlines()[0] == "weights        2.0000 GB"
    assert text.splitlines()[-1] == "total         14.0000 GB"


# ---------------------------------------------------------------- activations


def test_sizes_from_configurations() -> None:
    llama = Transformer.from_config(LLAMA_7B)
    assert (llama.kv_heads, llama.head_dim, llama.gated) == (32, 128, True)
    gpt2 = Transformer.from_config(
        {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257,
         "activation_function": "gelu_new"}
    )  # fmt: skip
    assert (gpt2.intermediate, gpt2.gated) == (3072, False)
    experts = Transformer.from_config(
        {"text_config": LLAMA_7B | {"num_experts_per_tok": 6, "moe_intermediate_size": 1408}}
    )
    assert experts.intermediate == 6 * 1408
    with pytest.raises(ValueError, match="expected hidden_size or n_embd"):
        Transformer.from_config({})


BASE = {
    "num_attention_heads": 16, "num_hidden_layers": 24, "vocab_size": 1000, "hidden_size": 512,
    "intermediate_size": 900,
}  # fmt: skip
ROUTED = {"num_experts_per_tok": 4, "moe_intermediate_size": 100}


@pytest.mark.parametrize(
    ("config", "visited"),
    [
        (ROUTED, 400),
        (ROUTED | {"n_shared_experts": 2}, 600),
        (ROUTED | {"num_shared_experts": 1}, 500),
        (ROUTED | {"shared_expert_intermediate_size": 250}, 650),
        (ROUTED | {"n_shared_experts": 2, "moe_shared_expert_intermediate_size": 250}, 650),
        (ROUTED | {"n_shared_experts": None}, 400),
        (ROUTED | {"moe_intermediate_size": [100, 50]}, 400),
        (ROUTED | {"enable_moe_block": True}, 1300),
        ({"moe_k": 6, "moe_num_shared_experts": 2, "moe_intermediate_size": 100}, 800),
        ({"num_experts_per_tok": 2, "shared_intermediate_size": 300}, 2100),
        ({"num_experts_per_tok": 1, "model_type": "llama4_text"}, 1800),
        ({"moe_topk": 2, "model_type": "hunyuan_v1_moe"}, 2700),
        ({"num_local_experts": 0, "num_experts_per_tok": 2, "shared_intermediate_size": 300}, 300),
        ({"ffn_config": {"moe_top_k": 4, "ffn_hidden_size": 300}, "intermediate_size": None}, 1200),
        ({}, 900),
    ],
    ids=str,
)
def test_experts_that_a_token_visits(config: dict[str, Any], visited: int) -> None:
    assert Transformer.from_config(BASE | config).intermediate == visited


@pytest.mark.parametrize(
    ("config", "dense"),
    [
        ({}, 0),
        ({"first_k_dense_replace": 3}, 3),
        ({"first_k_dense_replace": 3, "moe_layer_freq": 2}, 3 + 11),
        ({"moe_layer_freq": [0, *[1] * 23]}, 1),
        ({"num_dense_layers": 2}, 2),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1, 3]}, 12 + 2),
        ({"interleave_moe_layer_step": 2}, 12),
        ({"interleave_moe_layer_step": 2, "moe_layers": [1, 5]}, 22),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, 12),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1}, 1),
        ({"moe_layer_start_index": 0, "moe_layer_end_index": 11}, 12),
        ({"mlp_layer_types": ["dense", "dense", *["sparse"] * 22]}, 2),
    ],
    ids=str,
)
def test_layers_without_experts(config: dict[str, Any], dense: int) -> None:
    shape = Transformer.from_config(BASE | ROUTED | config)
    assert (shape.dense_layers, shape.dense_intermediate) == (dense, 900)
    assert Transformer.from_config(BASE | config).dense_layers == 0
    sparse, wide = (Transformer.from_config(BASE | more) for more in (ROUTED, {}))
    bytes_of = [t.activation_bytes(10) // 24 for t in (sparse, wide)]
    assert shape.activation_bytes(10) == (24 - dense) * bytes_of[0] + dense * bytes_of[1]
    largest = bytes_of[1] if dense else bytes_of[0]
    assert shape.activation_bytes(10, checkpointing=True) == 2 * 10 * 24 * 512 + largest


def test_llama4_has_another_name_for_dense_layers() -> None:
    config = {"num_experts_per_tok": 1, "model_type": "llama4_text", "intermediate_size_mlp": 1700}
    assert Transformer.from_config(BASE | config).dense_intermediate == 1700


def test_activations_are_what_autograd_keeps() -> None:
    """A gated layer written out, its saved tensors counted."""
    shape = Transformer(1, 32, 4, 2, 8, 80, 100)
    norm1, norm2 = (nn.RMSNorm(32, elementwise_affine=False, dtype=torch.bfloat16) for _ in "ab")
    qkv, out = nn.Linear(32, 64, bias=False).bfloat16(), nn.Linear(32, 32, bias=False).bfloat16()
    gate, up = (nn.Linear(32, 80, bias=False).bfloat16() for _ in "ab")
    down = nn.Linear(80, 32, bias=False).bfloat16()
    weights = {p.data_ptr() for layer in (qkv, out, gate, up, down) for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights and tensor.numel() > 32:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(2, 24, 32, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        q, k, v = (
            t.unflatten(-1, (-1, 8)).transpose(1, 2) for t in qkv(norm1(x)).split([32, 16, 16], -1)
        )
        mixed, lse = torch.ops.fulgurite.attention(q, k, v, causal=True)
        h = x + out(mixed.transpose(1, 2).flatten(2))
        z = norm2(h)
        y = h + down(nn.functional.silu(gate(z)) * up(z))
    assert y.requires_grad
    attention = lse.numel() * 4
    assert attention == shape.attention_bytes(2, 24)
    # Beside the estimate: attention's result once more where the heads are not adjacent, and the
    # float32 copies or statistics of this norm.
    expected = shape.activation_bytes(48) + attention
    assert expected <= sum(kept.values()) <= 1.5 * expected


def test_checkpointing_keeps_one_layer() -> None:
    llama = Transformer.from_config(LLAMA_7B)
    whole = llama.activation_bytes(4096)
    one = llama.activation_bytes(4096, checkpointing=True)
    assert one == whole // 32 + 2 * 4096 * 4096 * 32
    assert llama.attention_bytes(1, 4096) == 4 * 32 * 4096 * 32
    assert llama.eager_attention_bytes(1, 4096) == 2 * 32 * 4096**2 * 32


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *((text, 7 * 10**9) for text in ("7", "7e9", "7B")),
        ("0.5", 5 * 10**8),
        ("350m", 350_000_000),
        ("1000", 1000),
    ],
)
def test_numbers_of_parameters(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "seven", "-1", "0", "nan", "inf"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="number of parameters"):
        parse_count(text)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "memory.png"
    assert main(["7e9", "--out", str(picture)]) == 0
    shown = capsys.readouterr().out
    for total in ("112.0", "98.0", "84.0", "70.0", "56.0", "42.2"):
        assert total in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_configuration_adds_what_a_step_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA_7B))
    assert main(["6.74B", "--config", str(config), "--recipe", "standard", "--batch", "2"]) == 0
    shown = capsys.readouterr().out
    assert "activations" in shown
    assert "68.7 GB of probabilities" in shown


def test_a_model_is_counted_on_the_meta_device() -> None:
    sizes = tensor_sizes(LLAMA_7B)
    assert sum(sizes) == 6_738_415_616
    assert len(sizes) == 3 + 9 * 32
    small = LLAMA_7B | {"num_hidden_layers": 1, "tie_word_embeddings": True}
    assert tensor_sizes(small, "LlamaModel") == tensor_sizes(small)
    with pytest.raises(ValueError, match="no class Other"):
        tensor_sizes(LLAMA_7B, "Other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["many"], "number of parameters"),
        (["--config", "missing.json"], "JSON configuration"),
        (["--model", "LlamaForCausalLM"], "--model needs --config"),
        (["--batch", "0"], "--batch"),
        (["--recipe", "magic"], "invalid choice"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs transformers"):
        tensor_sizes({"architectures": ["LlamaForCausalLM"]})
