"""What tests of other libraries' models ask: which operators ran, and what a file gives back."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# What attention would be made of without fulgurite.
PLAIN = ("scaled_dot_product", "softmax")


class Seen(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def served(self) -> bool:
        torchs = any("scaled_dot_product" in name or "softmax" in name for name in self.names)
        return any(name.startswith("fulgurite::attention") for name in self.names) and not torchs

    def count(self, *operators: str) -> int:
        """How often fulgurite's operators of these names ran."""
        return sum(name.removeprefix("fulgurite::") in operators for name in self.names)


def saved(model: nn.Module) -> nn.Module:
    """What ``torch.save(model)`` gives back."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded
