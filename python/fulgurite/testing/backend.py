"""Where the operators run: a device and the set of kernels in use there.

Tests take these from here, so that none names a device or the module that switches sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fulgurite._config import _extension


@dataclass(frozen=True)
class Backend:
    """A device and a set of kernels.

    Attributes:
        device: where tensors are made.
        set: the kernels' name: an instruction set on the CPU.
    """

    device: torch.device
    set: str

    def __str__(self) -> str:
        return f"{self.device.type}-{self.set}"


_CPU = torch.device("cpu")


def backends() -> list[Backend]:
    """Every backend of this machine, the lowest set first.

    Example:
        >>> from fulgurite.testing.backend import backends
        >>> str(backends()[0])
        'cpu-baseline'
    """
    return [Backend(_CPU, name) for name in _extension().available_isas()]


def current() -> Backend:
    """The backend in use."""
    return Backend(_CPU, _extension().get_isa())


def select(name: str) -> None:
    """Use a set from now on.

    Raises:
        ValueError: the machine lacks it.
    """
    _extension().set_isa(name)


@contextmanager
def using(name: str) -> Iterator[Backend]:
    """Inside, use a set; then the one before."""
    before = current().set
    select(name)
    try:
        yield current()
    finally:
        select(before)


@contextmanager
def always_spread() -> Iterator[None]:
    """Inside, calls of any size run on every thread."""
    before = _extension().inline_cost()
    _extension().set_inline_cost(0)
    try:
        yield
    finally:
        _extension().set_inline_cost(before)


def kernels() -> dict[str, dict[str, Any]]:
    """The table of kernels by name: the sets that each was compiled for (``variants``), the one
    that would run (``active``) and the one that ran last (``ran``), ``calls``, ``tasks``."""
    return {row["name"]: row for row in _extension().kernel_table()}
