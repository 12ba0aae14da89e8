"""What AdamW keeps for a parameter: made before its first step, and again from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fulgurite.optim._codes import BLOCK, dequantize, memory_order, quantize, zero_code
from fulgurite.optim._parts import local, part_of

SIXTEEN_BITS = (torch.bfloat16, torch.float16)

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
                state[f"{key}_scales"] = torch.zeros(
                    blocks, dtype=torch.float32, device=param.device
                )
            else:
                state[key] = torch.zeros_like(param, dtype=self.moment_dtype(param))
        self.complete(param, group, state)

    def complete(self, param: Tensor, group: dict[str, Any], state: State) -> None:
        """Add what a state lacks: all of it before the first step, some of it after loading a
        checkpoint, a change of the group or of the parameter's dtype.
        """
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
        if "master" in state and not self.has_master(param):
            del state["master"]
        elif "master" not in state and self.has_master(param):
            state["master"] = (
                torch.zeros_like(param, dtype=torch.int16, requires_grad=False)
                if self.master == "split"
                else param.detach().float()
            )
        if group.get("ema_decay") is not None and "ema" not in state:
            state["ema"] = exact_value(param, state).to(_wide(param), copy=True)

    def has_master(self, param: Tensor) -> bool:
        return self.master is not None and param.dtype in SIXTEEN_BITS

    # ---- from a checkpoint ----

    def restore(self, param: Tensor, state: State, saved: dict[str, Any]) -> None:
        """The state from what was saved, which torch has cast meanwhile. What was not saved is made
        before the next step, of the parameter as it is then: the model may be loaded after the
        optimizer.
        """
        for key in _TENSORS:  # torch.distributed.checkpoint puts {} where nothing was saved
            if not isinstance(saved.get(key), Tensor):
                state.pop(key, None)
        state["step"] = saved["step"]
        for key, value in saved.items():
            if isinstance(value, Tensor):
                state[key] = value.detach().to(param.device, copy=True)
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=param.device)
        for key, signed in MOMENTS.items():
            self._restore_moment(param, state, key, signed)
        if "max_exp_avg_sq" in state:
            state["max_exp_avg_sq"] = state["max_exp_avg_sq"].to(self.moment_dtype(param))
        if "ema" in state:
            state["ema"] = state["ema"].to(_wide(param))
        self._restore_master(param, state)

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
            values = torch.empty_like(param, dtype=torch.float32, requires_grad=False)
            values.copy_(state.pop(key))
            state[f"{key}_codes"], state[f"{key}_scales"] = quantize(values, signed, order)
        else:
            state[key] = state[key].to(self.moment_dtype(param))

    def _restore_master(self, param: Tensor, state: State) -> None:
        """A master tells by its dtype what it is: float32 all of it, int16 the lower half. Any
        other has been through another optimizer, which took steps without it.
        """
        master = state.get("master")
        if master is None:
            return
        kept = {"fp32": torch.float32, "split": torch.int16}.get(self.master or "")
        if not self.has_master(param) or master.dtype not in (torch.float32, torch.int16):
            del state["master"]
        elif master.dtype == kept:
            return
        elif master.dtype == torch.float32:
            high, low = torch.ops.fulgurite.split_master(local(master))
            state["master"] = part_of(low, param)
            local(param).copy_(high)
        elif param.dtype == torch.bfloat16:
            state["master"] = exact_value(param, state)
        else:
            del state["master"]


_TENSORS = (
    "step", "max_exp_avg_sq", "master", "ema",
    *(name for key in MOMENTS for name in (key, f"{key}_codes", f"{key}_scales")),
)  # fmt: skip


def _wide(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


# ---- masters and their parameters ----


def exact_value(param: Tensor, state: State) -> Tensor:
    """The exact value of a parameter."""
    master = state.get("master")
    if master is None:
        return param.detach()
    if master.dtype != torch.int16:
        return master
    high = local(param.detach())
    joined: Tensor = torch.ops.fulgurite.join_master(high, local(master))
    # Halves that make no number are not of one float32: the parameter has been written.
    return part_of(torch.where(joined.isnan(), high.float(), joined), param)


def follow_parameter(param: Tensor, master: Tensor) -> None:
    """Where a parameter is not its float32 master rounded, someone has written it: the master takes
    the value.
    """
    rows = param.shape[0] if param.dim() and not torch.compiler.is_compiling() else 0
    if not rows or param.numel() <= _AT_ONCE:
        parts = [(param.detach(), master)]
    else:
        size = max(1, _AT_ONCE * rows // param.numel())
        parts = list(zip(param.detach().split(size), master.split(size), strict=True))
    for value, own in parts:
        rounded = own.to(value.dtype) == value
        if value.dtype == torch.bfloat16:  # a split master that was joined has ties away from zero
            rounded |= torch.ops.fulgurite.split_master(own)[0] == value
        own.copy_(torch.where(rounded, own, value.float()))


def take_parameter(param: Tensor, state: State) -> None:
    """The master becomes the value of the parameter, to the bit."""
    master = state.get("master")
    if master is not None:
        master.zero_() if master.dtype == torch.int16 else master.copy_(param)


_AT_ONCE = 1 << 20
"""Elements that a comparison works on at once: it takes no memory of the parameter's size."""
