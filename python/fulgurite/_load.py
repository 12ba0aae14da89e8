"""Loads libfulgurite.so, which registers the operators, and the optional module ``_C``."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch

_LIBRARY = Path(__file__).parent / "lib" / "libfulgurite.so"

_REBUILD = (
    "Rebuild it in this environment, from its source tree: "
    "pip install --no-build-isolation --no-deps --force-reinstall . (or make build)"
)


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def check_torch(built_with: str, running: str) -> None:
    """Raise ImportError unless both share their minor version: torch's C++ ABI changes with it."""
    if _minor(built_with) != _minor(running):
        raise ImportError(
            f"fulgurite was built with torch {built_with} and cannot run with torch {running}. "
            f"{_REBUILD}"
        )


def load() -> ModuleType | None:
    """Load the library; return ``_C``, or None where it was not built."""
    from fulgurite import _build_info

    check_torch(_build_info.TORCH_VERSION, torch.__version__)
    if not _LIBRARY.exists():
        raise ImportError(
            f"fulgurite: {_LIBRARY.name} is not beside the package; it has not been built. "
            f"{_REBUILD}"
        )
    try:
        torch.ops.load_library(str(_LIBRARY))
    except OSError as error:
        raise ImportError(
            f"fulgurite: loading {_LIBRARY.name} failed: {error}\n"
            "Likely causes: torch was replaced after the build (another build or version); "
            "the library was copied from another machine; a CPU build of torch was swapped for a "
            f"CUDA build. {_REBUILD}"
        ) from error
    try:
        return importlib.import_module("fulgurite._C")
    except ModuleNotFoundError:
        return None
