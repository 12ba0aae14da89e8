"""Switch's layer of experts, each of them a module, by ``moe_experts``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
)

from fulgurite.integrations.transformers.blocks import ACTIVATIONS
from fulgurite.integrations.transformers.experts import as_routing
from fulgurite.integrations.transformers.plain import refuse_adapted, refuse_hooks
from fulgurite.nn import functional as F


class SwitchSparseMLP(SwitchTransformersSparseMLP):
    """The weights are stacked for every call: the gradients reach each expert's parameters."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.check(self)  # adapters may have come since apply()
        chosen, weights, _ = self.router(hidden_states)  # one-hot (B, N, E), (B, N, 1)
        E = chosen.shape[-1]
        # Tokens beyond an expert's capacity have no one: E is the id of no expert.
        ids = torch.where(chosen.sum(-1) > 0, chosen.argmax(-1), E).view(-1, 1)
        experts = list(self.experts.values())
        w_in = torch.stack([expert.wi.weight for expert in experts])
        w_out = torch.stack([expert.wo.weight for expert in experts])
        # transformers may keep wo in float32 beside 16-bit weights.
        x = hidden_states.flatten(0, 1).to(w_out.dtype)
        y = F.moe_experts(
            x,
            ids,
            as_routing(weights.view(-1, 1), x),
            w_in.to(w_out.dtype),
            w_out,
            activation=ACTIVATIONS[type(experts[0].act).__name__],
            gated=False,
        )
        return y.to(hidden_states.dtype).view(hidden_states.shape)

    @staticmethod
    def check(module: Any) -> None:
        """Raise for experts that ``moe_experts`` cannot compute."""
        for key, expert in module.experts.items():
            place = f"fulgurite: {key} of {type(module).__name__}"
            refuse_hooks(expert, place)
            refuse_adapted(expert.wi, f"{place}, wi")
            refuse_adapted(expert.wo, f"{place}, wo")
            if expert.dropout.p > 0.0:
                raise NotImplementedError(
                    f"fulgurite: {type(module).__name__}: expected experts without dropout, got"
                    f" p={expert.dropout.p}: set config.dropout_rate=0, or the p of the experts'"
                    " dropout, or pass experts=False"
                )
            if type(expert.act).__name__ not in ACTIVATIONS:
                raise NotImplementedError(
                    f"fulgurite: {type(module).__name__}: no activation here for"
                    f" {type(expert.act).__name__}: pass experts=False"
                )
