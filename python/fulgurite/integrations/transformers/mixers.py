"""What the mixers of transformers 5 hold, as options and weights of modules of ``fulgurite.nn``.

Mixers are told by the names of their classes: transformers itself is not imported.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fulgurite.integrations.transformers.classes import released
from fulgurite.integrations.transformers.plain import refuse_adapted

Parts = tuple[dict[str, Any], dict[str, Tensor]]  # options of a module, its state dict


@torch.no_grad()
def mamba_parts(mixer: nn.Module) -> Parts:
    """Options of ``Mamba`` and its state dict."""
    name = released(type(mixer)).__name__
    if name != "MambaMixer":
        raise TypeError(f"Mamba.from_transformers: expected a MambaMixer, got {name}")
    of: Any = mixer
    if of.activation not in ("silu", "swish"):
        raise NotImplementedError(
            f"Mamba.from_transformers: expected an activation of silu, got {of.activation}"
        )
    for layer in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        refuse_adapted(getattr(of, layer), f"Mamba.from_transformers: {layer}", bias=True)
    options = {
        "dim": of.hidden_size,
        "state_size": of.ssm_state_size,
        "width": of.conv_kernel_size,
        "channels": of.intermediate_size,
        "dt_rank": of.time_step_rank,
        "dt_min": of.config.time_step_min,
        "dt_max": of.config.time_step_max,
        "bias": of.use_bias,
        "conv_bias": of.use_conv_bias,
    }
    return options, mixer.state_dict()
