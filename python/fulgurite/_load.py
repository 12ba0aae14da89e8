"""Loads the libfulgurite.so for the running torch, which registers the operators, and the optional
module ``_C``. The variable FULGURITE_LIBRARY names another library to load in its place.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

import torch

# A library for each minor version of torch: lib/torch2.13/libfulgurite.so
_FOLDER = Path(__file__).parent / "lib"

_REBUILD = (
    "Rebuild it in this environment, from its source tree: "
    "pip install --no-build-isolation --no-deps --force-reinstall . (or make build)"
)


def held_libraries(folder: Path) -> dict[tuple[int, int], Path]:
    """The libraries in the folder, by torch's minor version, oldest first."""
    found = {}
    for library in folder.glob("torch*/libfulgurite.so"):
        major, minor = library.parent.name.removeprefix("torch").split(".")
        found[int(major), int(minor)] = library
    return dict(sorted(found.items()))


def choose(folder: Path, running: str) -> Path:
    """The library for the running torch, whose C++ ABI changes with its minor version."""
    held = held_libraries(folder)
    if not held:
        raise ImportError(
            "fulgurite: libfulgurite.so is not beside the package; it has not been built. "
            f"{_REBUILD}"
        )
    major, minor = running.split("+")[0].split(".")[:2]
    library = held.get((int(major), int(minor)))
    if library is None:
        *others, last = [f"{major}.{minor}" for major, minor in held]
        names = f"{', '.join(others)} and {last}" if others else last
        raise ImportError(
            f"fulgurite was built for torch {names} and cannot run with torch {running}. "
            "Install one of these versions of torch, or a wheel of fulgurite for this one. "
            f"{_REBUILD}"
        )
    return library


def load() -> ModuleType | None:
    """Load the library; return ``_C``, or None where it was not built."""
    named = os.environ.get("FULGURITE_LIBRARY")
    library = Path(named) if named else choose(_FOLDER, torch.__version__)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"fulgurite: loading {library.parent.name}/{library.name} failed: {error}\n"
            "Likely causes: torch was replaced after the build by another build of that version; "
            "the library was copied from a machine with newer system libraries; "
            f"the file is incomplete. {_REBUILD}"
        ) from error
    try:
        return importlib.import_module("fulgurite._C")
    except ModuleNotFoundError:
        return None
