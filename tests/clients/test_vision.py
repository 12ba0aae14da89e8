"""timm's and diffusers' released classes: outputs and every gradient, copies, files, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
    return lambda model: model(x)


def vit() -> tuple[nn.Module, Call, Any, dict[str, int]]:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    return model, image(2, 32), of_timm.apply, {"Attention": 2}


def swin() -> tuple[nn.Module, Call, Any, dict[str, int]]:
    """Shifted windows of 4 and 8 × 8 patches: bias with a gradient, and masks."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), num_classes=3,
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
    return model, lambda model: model(**inputs).sample, of_diffusers.set_processor, name


def step(model: nn.Module, call: Call) -> list[Tensor]:
    """The output and the gradients."""
    model.zero_grad()
    out = call(model)
    torch.manual_seed(1)
    out.backward(torch.randn_like(out))
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("make", [vit, swin, sd3])
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
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for other in (copy.deepcopy(model), saved(model), compiled):
        torch.testing.assert_close(call(other), expected[0])
    applied.restore()
    with Seen() as seen:
        call(model)
    assert not any(name.startswith("fulgurite") for name in seen.names)


def test_swin_v2_of_timm_cannot_be_led() -> None:
    model = timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, embed_dim=32, depths=(2, 2), num_heads=(2, 4)
    )
    with pytest.raises(NotImplementedError, match="got none in SwinTransformerV2"):
        of_timm.apply(model)
