"""timm's and diffusers' released classes: outputs and every gradient, copies, files, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import timm
import torch
from torch import Tensor, nn

from fulgurite.integrations import diffusers as of_diffusers
from fulgurite.integrations import timm as of_timm
from seen import Seen, saved

Call = Callable[[nn.Module], Tensor]


def image(batch: int, size: int) -> Call:
    x = torch.randn(batch, 3, size, size, dtype=torch.float64)
    return lambda model: model(x.to(dtype_of(model)))


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def vit() -> tuple[nn.Module, Call, Any, dict[str, int]]:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    return model, image(2, 32), of_timm.apply, {"Attention": 2}


def swin() -> tuple[nn.Module, Call, Any, dict[str, int]]:
    """Shifted windows of 4 and 8 × 8 patches: bias with a gradient, and masks."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), num_classes=3,
        drop_path_rate=0.0,
    )  # fmt: skip
    return model, image(1, 64), of_timm.apply, {"WindowAttention": 4}


def sd3() -> tuple[nn.Module, Call, Any, dict[str, int]]:
    """Joint attention of image and text, the first layer with one of the image alone beside it."""
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8, dtype=torch.float64),
        "encoder_hidden_states": torch.randn(2, 5, 16, dtype=torch.float64),
        "pooled_projections": torch.randn(2, 16, dtype=torch.float64),
        "timestep": torch.tensor([3.0, 4.0], dtype=torch.float64),
    }
    name = {"JointAttnProcessor2_0": 3}

    def call(model: nn.Module) -> Tensor:
        cast = {key: x.to(dtype_of(model)) for key, x in inputs.items()}
        sample: Tensor = model(**cast).sample
        return sample

    return model, call, of_diffusers.set_processor, name


def step(model: nn.Module, call: Call) -> list[Tensor]:
    """The output and the gradients."""
    model.zero_grad()
    out = call(model)
    torch.manual_seed(1)
    out.backward(torch.randn_like(out))
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def checkpointed(model: Any) -> nn.Module:
    """In training, with activations computed again: timm and diffusers call it differently."""
    if isinstance(model, diffusers.ModelMixin):
        model.enable_gradient_checkpointing()
    else:
        model.set_grad_checkpointing()
    trained: nn.Module = model.train()
    return trained


each_class = pytest.mark.parametrize("make", [vit, swin, sd3])


@each_class
def test_a_released_class(make: Callable[[], tuple[nn.Module, Call, Any, dict[str, int]]]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, call, apply, replaced = make()
    model.double().eval()
    expected = step(model, call)
    applied = apply(model)
    assert dict(applied.replaced) == replaced
    with Seen() as seen:
        got = step(model, call)
    assert seen.served, set(seen.names)
    for name in ("fulgurite::attention", "fulgurite::_attention_backward"):
        assert seen.names.count(name) == sum(replaced.values())
    for mine, released in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, released)
    with Seen() as seen:
        again = step(checkpointed(copy.deepcopy(model)), call)
    assert seen.names.count("fulgurite::attention") == 2 * sum(replaced.values())
    for mine, released in zip(again, expected, strict=True):
        torch.testing.assert_close(mine, released)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for other in (copy.deepcopy(model), saved(model), compiled):
        torch.testing.assert_close(call(other), expected[0])
    applied.restore()
    with Seen() as seen:
        call(model)
    assert not any(name.startswith("fulgurite") for name in seen.names)


@each_class
def test_autocast(make: Callable[[], tuple[nn.Module, Call, Any, dict[str, int]]]) -> None:
    """Float32 weights: as near to the exact output as the released class."""
    torch.manual_seed(0)
    model, call, apply, _ = make()
    exact = step(model.double().eval(), call)[0]

    def distance() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            return (call(model).double() - exact).norm()

    model.float()
    released = distance()
    apply(model)
    assert distance() <= 1.25 * released


def test_a_model_of_diffusers_comes_back_from_its_files(tmp_path: Path) -> None:
    model, call, apply, _ = sd3()
    apply(model.double().eval())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, torch_dtype=torch.float64)
    of_diffusers.set_processor(again)
    torch.testing.assert_close(call(again), call(model))


def test_swin_v2_of_timm_cannot_be_led() -> None:
    model = timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, embed_dim=32, depths=(2, 2), num_heads=(2, 4)
    )
    with pytest.raises(NotImplementedError, match="got none in SwinTransformerV2"):
        of_timm.apply(model)
