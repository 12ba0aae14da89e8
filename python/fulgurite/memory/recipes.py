"""Recipes: how weights, gradients and the optimizer's states are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from fulgurite.memory.usage import Usage
from fulgurite.optim._codes import BLOCK
from fulgurite.optim._states import SMALLEST_CODED

_MASTER_BYTES = {None: 0, "fp32": 4, "split": 2}


@dataclass(frozen=True)
class Recipe:
    """One way to train with ``fulgurite.optim.AdamW``.

    Attributes:
        name: for the command line and the table.
        words: what it is.
        dtype: of parameters and gradients.
        master, state_dtype, stochastic_rounding: AdamW's.
    """

    name: str
    words: str
    dtype: torch.dtype = torch.bfloat16
    master: str | None = None
    state_dtype: torch.dtype | str | None = None
    stochastic_rounding: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of AdamW."""
        return {
            "master": self.master,
            "state_dtype": self.state_dtype,
            "stochastic_rounding": self.stochastic_rounding,
        }

    def moment_bytes(self, elements: int) -> int:
        """Both moments of one parameter tensor: numbers, or codes with their scales."""
        if self.state_dtype == "8bit" and elements >= SMALLEST_CODED:
            return 2 * (elements + 4 * -(-elements // BLOCK))
        return 2 * elements * (2 if self.state_dtype == torch.bfloat16 else 4)

    def usage(self, elements: Iterable[int]) -> Usage:
        """The bytes for parameter tensors of these numbers of elements, between backward and step.

        Example:
            >>> from fulgurite.memory import RECIPES
            >>> RECIPES["standard"].usage([7_000_000_000]).total / 1e9
            112.000000004
        """
        sizes = list(elements)
        parameters = sum(sizes)
        return Usage(
            weights=parameters * self.dtype.itemsize,
            gradients=parameters * self.dtype.itemsize,
            masters=parameters * _MASTER_BYTES[self.master],
            moments=sum(map(self.moment_bytes, sizes)),
            other=4 * len(sizes),  # each counts its steps in a float32
        )


def _by_name(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes}


RECIPES = _by_name(
    Recipe("standard", "bf16, float32 masters and moments", master="fp32"),
    Recipe("float32", "float32 throughout, bf16 under autocast", dtype=torch.float32),
    Recipe("split", "bf16, split masters", master="split"),
    Recipe("stochastic", "bf16, stochastic rounding", stochastic_rounding=True),
    Recipe(
        "split-bf16", "bf16, split masters, bf16 moments",
        master="split", state_dtype=torch.bfloat16,
    ),
    Recipe(
        "standard-8bit", "bf16, float32 masters, 8-bit moments", master="fp32", state_dtype="8bit"
    ),
    Recipe("split-8bit", "bf16, split masters, 8-bit moments", master="split", state_dtype="8bit"),
    Recipe(
        "stochastic-bf16", "bf16, stochastic rounding, bf16 moments",
        state_dtype=torch.bfloat16, stochastic_rounding=True,
    ),
    Recipe(
        "stochastic-8bit", "bf16, stochastic rounding, 8-bit moments",
        state_dtype="8bit", stochastic_rounding=True,
    ),
)  # fmt: skip
"""By name, from the usual 16 bytes a parameter down to 6."""
