"""The facts that a measurement depends on: the machine, the code, the day."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fulgurite

_PACKAGE = Path(fulgurite.__file__).parent


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor as Linux describes it; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu() -> str:
    """The processor's name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def as_wide_as_the_machine(isa: str) -> bool:
    """Whether a set has the widest vectors of this machine, as the libraries behind torch do."""
    flags = _cpuinfo().get("flags", "").split()
    if "avx512f" in flags:
        return isa.startswith("avx512") or isa == "amx"
    return isa != "baseline" or "avx2" not in flags


def machine() -> dict[str, Any]:
    """What a ratio depends on."""
    c = fulgurite._C
    return {
        "cpu": cpu(),
        "isa": c.get_isa() if c else "unknown",
        "isas": c.available_isas() if c else [],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fulgurite": fulgurite.__version__,
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str | None:
    """The commit of the source tree that the package stands in, with ``-dirty`` behind it where
    files differ from it; None for a package installed without its tree."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def now() -> str:
    """The time in UTC to a second: ``2026-01-31T12:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")
