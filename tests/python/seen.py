"""Which operators run below a point."""

from __future__ import annotations

from typing import Any

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
