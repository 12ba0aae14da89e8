"""Small random models of transformers with inputs, and what one training step of them gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Inputs = dict[str, Any]
Outcome = tuple[Tensor, dict[str, Tensor]]  # the first output, gradients by parameter

TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
    "use_cache": False,
}
MIXTURE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}


def randomized(model: nn.Module) -> Any:
    """The model with no weight at the value of its initialisation, in float64."""
    for weight in model.state_dict().values():  # not the buffers that are computed
        if weight.is_floating_point():
            weight.add_(torch.randn(weight.shape) * 0.1)
    return model.double()


def tokens() -> Inputs:
    return {"input_ids": torch.randint(3, 50, (2, 11))}


def padded_tokens() -> Inputs:
    """With padding on the left of the second."""
    keep = torch.ones(2, 11, dtype=torch.int64)
    keep[1, :3] = 0
    return tokens() | {"attention_mask": keep}


def encoder_and_decoder() -> Inputs:
    keep = torch.ones(2, 11, dtype=torch.int64)
    keep[1, 8:] = 0
    return {
        "input_ids": torch.randint(3, 50, (2, 11)),
        "attention_mask": keep,
        "decoder_input_ids": torch.randint(3, 50, (2, 7)),
    }


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), tokens()


def mistral() -> Any:
    return hf.MistralForCausalLM(hf.MistralConfig(**TEXT, sliding_window=4)), tokens()


def mixtral() -> Any:
    config = hf.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(config), tokens()


def qwen3_moe() -> Any:
    config = hf.Qwen3MoeConfig(
        **TEXT, **MIXTURE, num_experts=6, head_dim=8, decoder_sparse_step=1, norm_topk_prob=True
    )
    return hf.Qwen3MoeForCausalLM(config), tokens()


def deepseek_v3() -> Any:
    config = hf.DeepseekV3Config(
        **TEXT | {"num_key_value_heads": 4},
        **MIXTURE,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=8,
        first_k_dense_replace=1,
    )
    return hf.DeepseekV3ForCausalLM(config), tokens()


def gpt_oss() -> Any:
    config = hf.GptOssConfig(
        **TEXT,
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return hf.GptOssForCausalLM(config), tokens()


def t5() -> Any:
    config = hf.T5Config(
        vocab_size=50,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    return hf.T5ForConditionalGeneration(config), encoder_and_decoder()


def switch(dropout: float = 0.0) -> Any:
    config = hf.SwitchTransformersConfig(
        vocab_size=50,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_sparse_encoder_layers=1,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_heads=4,
        num_experts=4,
        expert_capacity=3,
        router_jitter_noise=0.0,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    return hf.SwitchTransformersForConditionalGeneration(config), encoder_and_decoder()


def swin(kind: str = "Swin") -> Any:
    config = getattr(hf, f"{kind}Config")(
        image_size=32,
        patch_size=4,
        num_channels=3,
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=4,
        drop_path_rate=0.0,
        attn_implementation="eager",
    )
    return getattr(hf, f"{kind}Model")(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def swinv2() -> Any:
    return swin("Swinv2")


def detr() -> Any:
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = hf.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        backbone=None,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=5,
        dropout=0.0,
        attn_implementation="eager",
    )
    mask = torch.ones(2, 48, 48, dtype=torch.int64)
    mask[1, :, 24:] = 0
    inputs = {"pixel_values": torch.randn(2, 3, 48, 48), "pixel_mask": mask}
    return hf.DetrModel(config), inputs


def sam_vision(kind: str = "Sam", implementation: str = "eager") -> Any:
    config = getattr(hf, f"{kind}VisionConfig")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_dim=48,
        image_size=32,
        patch_size=4,
        window_size=3,
        global_attn_indexes=[1],
        output_channels=8,
        attn_implementation=implementation,
    )
    return getattr(hf, f"{kind}VisionModel")(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def sam_vision_sdpa() -> Any:
    return sam_vision("Sam", "sdpa")


def sam_hq_vision() -> Any:
    return sam_vision("SamHQ")


def qwen2_vl() -> Any:
    text = {key: TEXT[key] for key in TEXT if "implementation" not in key}
    config = hf.Qwen2VLConfig(
        text_config=text
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        image_token_id=1,
        attn_implementation="eager",
    )
    ids = torch.randint(3, 50, (1, 14))
    ids[0, 2:6] = ids[0, 8:10] = 1
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == 1).long(),
        "pixel_values": torch.randn(4 * 4 + 2 * 4, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 2, 4]]),
    }
    return hf.Qwen2VLForConditionalGeneration(config), inputs


def chameleon() -> Any:
    config = hf.ChameleonConfig(
        **TEXT,
        vocabulary_map={"<image>": 4},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
                   "num_embeddings": 8, "embed_dim": 8, "latent_channels": 8},
    )  # fmt: skip
    return hf.ChameleonForConditionalGeneration(config), {
        "input_ids": torch.randint(5, 50, (2, 11))
    }


def mamba(kind: str = "Mamba") -> Any:
    config = getattr(hf, f"{kind}Config")(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4, use_cache=False
    )
    return getattr(hf, f"{kind}ForCausalLM")(config), padded_tokens()


def falcon_mamba() -> Any:
    return mamba("FalconMamba")


def jamba() -> Any:
    """A layer of Mamba, and one of attention with experts."""
    config = hf.JambaConfig(
        **TEXT,
        num_experts=4,
        num_experts_per_tok=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=3,
    )
    return hf.JambaForCausalLM(config), tokens()


MODELS: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        llama, qwen3_moe, swinv2, mistral, mixtral, deepseek_v3, gpt_oss, t5, switch, swin, detr,
        sam_vision, sam_vision_sdpa,
        sam_hq_vision, qwen2_vl, chameleon, mamba, falcon_mamba, jamba,
    )
}  # fmt: skip


def made(name: str) -> tuple[Any, Inputs]:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    cast = {
        key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for key, x in inputs.items()
    }
    return randomized(model), cast


def outcome(model: Any, inputs: Inputs) -> Outcome:
    """The first output of a call, and the gradients of a sum of it in which no two are alike."""
    model.zero_grad()
    out = model(**inputs)[0]
    pattern = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).cos().view(out.shape)
    (out * pattern).sum().backward()
    # An expert that is a module and gets no token has no gradient before, and zeros here.
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    return out.detach(), grads


def assert_alike(got: Outcome, expected: Outcome, rtol: float = 1e-5) -> None:
    """Eager models compute softmax in float32, whatever their dtype is."""
    torch.testing.assert_close(got[0], expected[0], rtol=rtol, atol=rtol)
    assert got[1].keys() == expected[1].keys()
    largest = max(grad.abs().max().item() for grad in expected[1].values())
    for name, grad in expected[1].items():
        torch.testing.assert_close(
            got[1][name], grad, rtol=rtol, atol=rtol * largest, msg=lambda m, n=name: f"{n}: {m}"
        )
