"""What AdamW keeps for a parameter: made before its first step, and again from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fulgurite.optim._codes import BLOCK, dequantize, memory_order, quantize, zero_code

SMALLEST_CODED = 4096
"""Tensors of fewer elements keep 32-bit states: biases and norms are few and sensitive."""

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""The moments that may be codes; True where the map has signs."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class StateKind:
    """How states are kept.

    Attributes:
        master: None, "fp32" or "split".
        dtype: of the moments: None, torch.float32, torch.bfloat16 or "8bit".
    """

    master: str | None
    dtype: torch.dtype | str | None

    def coded(self, param: Tensor) -> bool:
        return (
            self.dtype == "8bit"
            and param.dtype != torch.float64
            and param.numel() >= SMALLEST_CODED
        )

    def moment_dtype(self, param: Tensor) -> torch.dtype:
        if param.dtype == torch.float64:
            return torch.float64
        return self.dtype if isinstance(self.dtype, torch.dtype) else torch.float32

    def start(self, param: Tensor, group: dict[str, Any], state: State) -> None:
        """The state of a parameter before its first step."""
        state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        for key, signed in MOMENTS.items():
            if self.coded(param):
                blocks = -(-param.numel() // BLOCK)
                state[f"{key}_codes"] = torch.full_like(
                    param, zero_code(signed), dtype=torch.uint8, requires_grad=False
                )
                state[f"{key}_scales"] = torch.zeros(blocks, device=param.device)
            else:
                state[key] = torch.zeros_like(param, dtype=self.moment_dtype(param))
        self.complete(param, group, state)

    def complete(self, param: Tensor, group: dict[str, Any], state: State) -> None:
        """Add what a state lacks: all of it before the first step, some of it after loading torch's
        checkpoint or a change of the group.
        """
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
        if self.master is not None and param.dtype == torch.bfloat16 and "master" not in state:
            state["master"] = (
                torch.zeros_like(param, dtype=torch.int16)
                if self.master == "split"
                else param.detach().float()
            )
        if group["ema_decay"] is not None and "ema" not in state:
            wide = torch.float64 if param.dtype == torch.float64 else torch.float32
            state["ema"] = exact_value(param, state).to(wide, copy=True)

    # ---- from a checkpoint ----

    def restore(self, param: Tensor, group: dict[str, Any], state: State, saved: State) -> None:
        """The state from what was saved, which torch has cast meanwhile."""
        for key, value in saved.items():
            if isinstance(value, Tensor):
                state[key] = value.detach().to(param.device, copy=True)
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(param.device)
        for key, signed in MOMENTS.items():
            if key in state or f"{key}_codes" in state:
                self._restore_moment(param, state, key, signed)
        if "max_exp_avg_sq" in state:
            state["max_exp_avg_sq"] = state["max_exp_avg_sq"].to(self.moment_dtype(param))
        self._restore_master(param, state)
        self.complete(param, group, state)

    def _restore_moment(self, param: Tensor, state: State, key: str, signed: bool) -> None:
        """Keep codes or numbers as they were saved, or turn the ones into the others."""
        codes, scales = state.get(f"{key}_codes"), state.get(f"{key}_scales")
        order = memory_order(param)
        if codes is not None and scales is not None:
            if self.coded(param) and memory_order(codes) == order:
                return
            state[key] = dequantize(codes, scales, signed)
            del state[f"{key}_codes"], state[f"{key}_scales"]
        if self.coded(param):
            values = torch.empty_like(param, dtype=torch.float32).copy_(state.pop(key))
            state[f"{key}_codes"], state[f"{key}_scales"] = quantize(values, signed, order)
        else:
            state[key] = state[key].to(self.moment_dtype(param))

    def _restore_master(self, param: Tensor, state: State) -> None:
        master = state.get("master")
        if master is None:
            return
        if self.master is None or param.dtype != torch.bfloat16:
            del state["master"]
        elif self.master == "fp32" and master.dtype == torch.int16:
            state["master"] = torch.ops.fulgurite.join_master(param, master)
        elif self.master == "split" and master.dtype != torch.int16:
            high, state["master"] = torch.ops.fulgurite.split_master(master.float())
            param.copy_(high)


def exact_value(param: Tensor, state: State) -> Tensor:
    """The exact value of a parameter."""
    master = state.get("master")
    if master is None:
        return param.detach()
    if master.dtype == torch.int16:
        joined: Tensor = torch.ops.fulgurite.join_master(param.detach(), master)
        return joined
    return master
