"""The library's facts and switches: build, instruction sets, the table of kernels."""

from __future__ import annotations

from typing import Any

import torch


class Runtime:
    """``torch.classes.fulgurite.Runtime``; C++ programs have ``<fulgurite/config.h>``."""

    def __init__(self) -> None:
        self._library = torch.classes.fulgurite.Runtime()

    def version(self) -> str:
        return str(self._library.version())

    def torch_version(self) -> str:
        """The torch whose headers the library was compiled with."""
        return str(self._library.torch_version())

    def compiler(self) -> str:
        return str(self._library.compiler())

    def available_isas(self) -> list[str]:
        """Instruction sets of this machine that the build knows, lowest first."""
        return list(self._library.available_isas())

    def get_isa(self) -> str:
        return str(self._library.get_isa())

    def set_isa(self, name: str) -> None:
        """Use an instruction set from the next call on.

        Raises:
            ValueError: the machine or the build lacks it.
        """
        if name not in self.available_isas():
            raise ValueError(
                "fulgurite: expected an instruction set of this machine "
                f"({', '.join(self.available_isas())}), got {name!r}"
            )
        self._library.set_isa(name)

    def inline_cost(self) -> int:
        return int(self._library.inline_cost())

    def set_inline_cost(self, cost: int) -> None:
        """Calls that cost less, in arithmetic or bytes, run on the calling thread alone."""
        self._library.set_inline_cost(cost)

    def measure_peak(self, dtype: str) -> float:
        """Operations a second of all threads on operands at hand, for products of a dtype.

        Raises:
            ValueError: a dtype that has no products.
        """
        if dtype not in ("float64", "float32", "bfloat16"):
            raise ValueError(f"fulgurite: expected float64, float32 or bfloat16, got {dtype}")
        return float(self._library.measure_peak(dtype))

    def choices(self) -> dict[str, list[str]]:
        """The names that string arguments take, as ``{"attention.score": ["softmax", …], …}``."""
        return {argument: list(names) for argument, names in self._library.choices()}

    def kernel_table(self) -> list[dict[str, Any]]:
        """A row for each kernel: name, device, variants, active, ran, and counts since loading."""
        rows = []
        for name, device, variants, active, ran, counts in self._library.kernel_table():
            calls, tasks, threads, tile_rows, tile_columns, tiles, tiles_skipped = counts
            rows.append(
                {
                    "name": name,
                    "device": device,
                    "variants": list(variants),
                    "active": active,
                    "ran": ran,
                    "calls": calls,
                    "tasks": tasks,
                    "threads": threads,
                    "tile": (tile_rows, tile_columns),
                    "tiles": tiles,
                    "tiles_skipped": tiles_skipped,
                }
            )
        return rows
