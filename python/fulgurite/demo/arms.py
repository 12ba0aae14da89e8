"""The two arms of the comparison: one optimizer step with fulgurite, one with plain PyTorch.

Everything but :meth:`Arm.update` and the model is shared, so the difference between the arms is
what fulgurite replaces and nothing else.
"""

import math
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler  # torch.amp exports it to mypy since torch 2.13

from fulgurite.amp import LossScaler
from fulgurite.demo.memory import peak_bytes
from fulgurite.demo.model import LanguageModel, ModelConfig, initialise
from fulgurite.demo.plain import build_plain, plain_state
from fulgurite.optim import AdamW

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEARNING_RATE = 2e-3
WARMUP_STEPS = 10
FINAL_LEARNING_RATE = 0.1  # of the peak
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0
OVERFLOW_FACTOR = 2.0**24  # on the scaled loss of the forced overflow: float16 ends at 2^16


def learning_rate(step: int, steps: int | None) -> float:
    """Linear warm-up, then a half cosine to a tenth of the peak; steps count from 1.

    The warm-up does not need to know how many steps there are.
    """
    if step <= WARMUP_STEPS:
        return LEARNING_RATE * step / WARMUP_STEPS
    if steps is None:
        raise ValueError("learning_rate: the number of steps must be known after the warm-up")
    progress = min(1.0, (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return LEARNING_RATE * (FINAL_LEARNING_RATE + (1.0 - FINAL_LEARNING_RATE) * cosine)


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, norm weights do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    loss: float  # cross-entropy, nats per byte
    seconds: float
    skipped: bool
    note: str = ""  # why it was skipped


class Arm(ABC):
    """A model, its optimizer and its loss scaler, in one precision."""

    def __init__(self, model: LanguageModel, precision: str) -> None:
        self.model = model
        self.precision = precision
        self.optimizer: torch.optim.Optimizer
        self.scaler: LossScaler | GradScaler

    @abstractmethod
    def update(self) -> str | None:
        """Unscale, clip, step; returns why the step was skipped, None if it was not."""

    def autocast(self) -> AbstractContextManager[None]:
        enabled = self.precision != "fp32"
        dtype = DTYPES[self.precision] if enabled else torch.bfloat16
        return torch.autocast("cpu", dtype=dtype, enabled=enabled)

    def train_step(self, tokens: Tensor, rate: float, *, overflow: bool = False) -> Step:
        """One step on tokens (B, N + 1); ``overflow`` makes the gradients overflow float16."""
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.forward_backward(tokens, OVERFLOW_FACTOR if overflow else 1.0)
        note = self.update()
        self.optimizer.zero_grad()
        for layer in self.model.moe_layers():
            layer.update_bias()
        seconds = time.perf_counter() - started
        return Step(loss, seconds, note is not None, note or "")

    def forward_backward(self, tokens: Tensor, factor: float = 1.0) -> float:
        """Gradients of factor times the loss; returns the cross-entropy."""
        cross_entropy = self.cross_entropy(tokens)
        torch.autograd.backward(self.scaler.scale((cross_entropy + self.aux_loss()) * factor))
        return cross_entropy.item()

    def peak_bytes(self, tokens: Tensor) -> int:
        """Most memory that a forward and backward take at once beyond weights and states.

        Leaves no trace: gradients and counted loads are dropped.
        """
        peak = peak_bytes(lambda: self.forward_backward(tokens))
        self.optimizer.zero_grad()
        for layer in self.model.moe_layers():
            layer.load.zero_()
        return peak

    def cross_entropy(self, tokens: Tensor) -> Tensor:
        """Mean negative log-likelihood of the next byte, 0-dim float32."""
        with self.autocast():
            logits = self.model(tokens[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def aux_loss(self) -> Tensor:
        """The routers' balance and z-losses of the last forward, 0-dim float32."""
        return torch.stack([layer.aux_loss for layer in self.model.moe_layers()]).sum()

    @torch.no_grad()
    def evaluate(self, sequences: Tensor) -> float:
        """Mean loss on sequences (count, N + 1), in float32 whatever the training precision."""
        self.model.eval()
        total = 0.0
        for tokens in torch.split(sequences, 2):
            logits = self.model(tokens[:, :-1]).flatten(0, 1)
            total += F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum").item()
        self.model.train()
        return total / sequences[:, 1:].numel()

    def training_state(self) -> dict[str, Any]:
        """Optimizer and scaler state; the weights are saved apart."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty when scaling is off
            self.scaler.load_state_dict(state["scaler"])


class FulguriteArm(Arm):
    """Unscale, check, clip and step in two passes: one reads the gradients, one updates."""

    optimizer: AdamW
    scaler: LossScaler

    def __init__(self, config: ModelConfig, precision: str, seed: int) -> None:
        model = LanguageModel(config)
        initialise(model, seed)
        super().__init__(model, precision)
        groups = decay_groups(model)
        self.optimizer = AdamW(groups, lr=LEARNING_RATE, betas=BETAS, max_grad_norm=MAX_GRAD_NORM)
        self.scaler = LossScaler("cpu", enabled=precision == "fp16")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names = [names[id(parameter)] for group in groups for parameter in group["params"]]

    def update(self) -> str | None:
        scale, skipped = self.scaler.get_scale(), self.scaler.skipped
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.skipped == skipped:
            return None
        first = self.names[int(self.scaler.first_bad)]
        return f"overflow first in {first}, loss scale {scale:g} to {self.scaler.get_scale():g}"


class PlainArm(Arm):
    """GradScaler, clip_grad_norm_ and torch's fused AdamW."""

    scaler: GradScaler

    def __init__(self, config: ModelConfig, precision: str, seed: int) -> None:
        twin = LanguageModel(config)
        initialise(twin, seed)
        model = build_plain(config)
        model.load_state_dict(plain_state(twin.state_dict(), config.experts))
        super().__init__(model, precision)
        self.optimizer = torch.optim.AdamW(
            decay_groups(model), lr=LEARNING_RATE, betas=BETAS, fused=True
        )
        self.scaler = GradScaler("cpu", enabled=precision == "fp16")

    def update(self) -> str | None:
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:
            return None
        return f"overflow, loss scale {scale:g} to {self.scaler.get_scale():g}"


def build_arm(name: str, config: ModelConfig, precision: str, seed: int) -> Arm:
    """The arm of a name: "fulgurite", "plain", or "reference" (fulgurite in float32)."""
    if name == "plain":
        return PlainArm(config, precision, seed)
    return FulguriteArm(config, "fp32" if name == "reference" else precision, seed)
