"""Mamba's mixers, by ``causal_conv1d`` and ``selective_scan``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.integrations.accelerate import force_accelerate_hooks
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from fulgurite.integrations.transformers.plain import refuse_derived
from fulgurite.nn import functional as F
from fulgurite.nn.mamba import gated_scan, states_dtype, without_padding


def check_mixer(layer: Any) -> None:
    """Raise for a δ that is more than the weight of its projection says."""
    refuse_derived(layer.dt_proj, f"fulgurite: dt_proj of {type(layer).__name__}")


def mixed(
    layer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """(B, L, H) to the same. Several positions go on from a cache, too."""
    check_mixer(layer)  # adapters may have come since apply()
    keep = None if attention_mask is None else attention_mask.bool()
    u, z = layer.in_proj(without_padding(hidden_states, keep)).chunk(2, dim=-1)  # (B, L, C) each
    states = None if cache_params is None else cache_params.get_recurrent_state(layer.layer_idx)
    u = without_padding(convolved(layer, u, cache_params), keep)
    sizes = [layer.time_step_rank, layer.ssm_state_size, layer.ssm_state_size]
    delta, B, C = layer.x_proj(u).split(sizes, dim=-1)
    if hasattr(layer, "dt_layernorm"):
        delta, B, C = layer.dt_layernorm(delta), layer.b_layernorm(B), layer.c_layernorm(C)
    delta = nn.functional.linear(delta, layer.dt_proj.weight)
    if states is not None:
        states = states.to(states_dtype(u))
    y, states = gated_scan(
        u, z, delta, B, C, layer.A_log, layer.D, layer.dt_proj.bias, states, None
    )
    if cache_params is not None:
        cache_params.update_recurrent_state(states, layer.layer_idx)
    out: Tensor = layer.out_proj(y.to(hidden_states.dtype))
    return out


def convolved(layer: Any, u: Tensor, cache: Any) -> Tensor:
    """What the convolution and its activation give, behind the inputs in the cache."""
    line, length = u.transpose(1, 2), u.shape[1]
    if cache is not None:
        width = layer.conv_kernel_size
        line = cache.update_conv_state(line, layer.layer_idx, conv_kernel_size=width)
    silu = layer.activation in ("silu", "swish")
    weight, bias = layer.conv1d.weight.squeeze(1), layer.conv1d.bias
    out, _ = F.causal_conv1d(line, weight, bias, "silu" if silu else "none")
    out = out[..., line.shape[2] - length :]
    return (out if silu else layer.act(out)).transpose(1, 2)


class Mixer(nn.Module):
    """What the classes below have in place of the released ones' ``forward``."""

    check = staticmethod(check_mixer)

    # Weights of these two are read, which hooks of accelerate may have put elsewhere.
    forward = force_accelerate_hooks(["conv1d", "dt_proj"])(mixed)


class Mamba(Mixer, MambaMixer):
    """Mamba's own."""


class FalconMamba(Mixer, FalconMambaMixer):
    """With norms of δ, B and C."""


class Jamba(Mixer, JambaMambaMixer):
    """With norms of δ, B and C."""
