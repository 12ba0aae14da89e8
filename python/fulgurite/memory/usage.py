"""Bytes by what they are for."""

from __future__ import annotations

from dataclasses import dataclass, fields

GB = 1e9
"""Decimal, as memory of 7 B parameters times 16 bytes is quoted: 112 GB."""


@dataclass(frozen=True)
class Usage:
    """Bytes of a training run that are there between two steps.

    Attributes:
        weights: the parameters that the model computes with.
        gradients: theirs.
        masters: what 16-bit parameters lack of float32, in the optimizer.
        moments: both of AdamW's (with the scales of 8-bit ones, and amsgrad's maximum).
        other: counts of steps, averages, low-precision copies, buffers of the model.
    """

    weights: int = 0
    gradients: int = 0
    masters: int = 0
    moments: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """The attributes by name, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: Usage) -> Usage:
        added = {name: value + getattr(other, name) for name, value in self.parts().items()}
        return Usage(**added)

    def __str__(self) -> str:
        """One line per part, in decimal gigabytes."""
        lines = [f"{name:<10} {value / GB:10.4f} GB" for name, value in self.parts().items()]
        return "\n".join([*lines, f"{'total':<10} {self.total / GB:10.4f} GB"])
