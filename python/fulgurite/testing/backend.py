"""Where the operators run: a device and the set of kernels in use there.

Tests take these from here, so that none names a device or the module that switches sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fulgurite._config import cuda_targets, runtime

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """A device and a set of kernels.

    Attributes:
        device: where tensors are made.
        set: the kernels' name: an instruction set on the CPU, ``cuda-on-host``, or ``sm_90``.
        kernels: ``cpu`` or ``cuda``, which kernels run; on the CPU's tensors those of CUDA do
            where the library is one of tests/cuda_on_host.
        dtypes: the floating dtypes that have kernels.
    """

    device: torch.device
    set: str
    kernels: str = "cpu"
    dtypes: tuple[torch.dtype, ...] = _FLOATS

    def __str__(self) -> str:
        return f"{self.device.type}-{self.set}"


_CPU = torch.device("cpu")
NAMES = ("cpu", "cuda-on-host", "cuda")
_chosen: Backend | None = None  # None: the CPU, with the set in use


def choose(name: str) -> None:
    """Use one of ``NAMES`` from now on.

    Raises:
        ValueError: the library or the machine has no such kernels.
    """
    global _chosen
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    on_host = cuda_targets() == ["host"]
    if on_host != (name == "cuda-on-host"):
        raise ValueError(
            f"backend {name}: the library loaded {'is' if on_host else 'is not'} "
            "libfulgurite_host_cuda.so or libfulgurite_host_cuda_checked.so of a build's "
            "tests/cuda_on_host, which FULGURITE_LIBRARY names"
        )
    if name == "cpu":
        _chosen = None
    elif name == "cuda-on-host":
        _chosen = Backend(_CPU, name, "cuda", _FLOATS[1:])
    elif not torch.cuda.is_available() or not cuda_targets():
        raise ValueError(f"backend {name}: no card, or built without CUDA")
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        major, minor = torch.cuda.get_device_capability(device)
        _chosen = Backend(device, f"sm_{major}{minor}", "cuda", _FLOATS[1:])


def backends() -> list[Backend]:
    """Every backend of this machine, the lowest set first; the chosen one alone if it is CUDA's.

    Example:
        >>> from fulgurite.testing.backend import backends
        >>> str(backends()[0])
        'cpu-baseline'
    """
    return [_chosen] if _chosen else [Backend(_CPU, name) for name in runtime().available_isas()]


def current() -> Backend:
    """The backend in use."""
    return _chosen or Backend(_CPU, runtime().get_isa())


def select(name: str) -> None:
    """Use a set from now on.

    Raises:
        ValueError: the machine lacks it.
    """
    if _chosen is None:
        runtime().set_isa(name)
    elif name != _chosen.set:
        raise ValueError(f"backend: expected {_chosen.set}, the only set, got {name!r}")


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
    before = runtime().inline_cost()
    runtime().set_inline_cost(0)
    try:
        yield
    finally:
        runtime().set_inline_cost(before)


def kernels() -> dict[str, dict[str, Any]]:
    """The table of the backend's kernels by name: what each was compiled for (``variants``), the
    one that would run (``active``) and the one that ran last (``ran``), ``calls``, ``tasks``."""
    used = current().kernels
    return {row["name"]: row for row in runtime().kernel_table() if row["device"] == used}
