"""How much a process grows while one side of a memory case runs in it, once.

That is what a user pays: unlike the allocator's peak it counts pages that were freed and that
malloc keeps. ``python -m fulgurite.bench.growth FAMILY INDEX SIDE [--quick]`` prints it in MiB.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import median

from fulgurite.bench.harness import MemoryCase

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def grown_mib(family: str, index: int, side: str, quick: bool) -> float:
    """Of a new process, without results: the median of three, as a few MiB depend on where the
    system puts things. 0 where it does not tell (Linux does)."""
    if not _RESET.exists():
        return 0.0
    command = [sys.executable, "-m", "fulgurite.bench.growth", family, str(index), side]
    command += ["--quick"] * quick

    def grown() -> float:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout)

    return median(grown() for _ in range(1 if quick else 3))


def _resident_mib(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _give_back() -> None:
    """What making the case has freed, so that the side does not grow into it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _case(family: str, quick: bool, index: int) -> MemoryCase:
    cases = import_module(f"fulgurite.bench.{family}").memory_cases(quick)
    case: MemoryCase = next(islice(cases, index, None))
    return case


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fulgurite.bench.growth", description=__doc__)
    parser.add_argument("family")
    parser.add_argument("index", type=int)
    parser.add_argument("side", choices=("ours", "plain"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    getattr(_case(options.family, True, 0), options.side)()  # loads what is loaded once
    case = _case(options.family, options.quick, options.index)
    _give_back()
    _RESET.write_text("5")  # the peak begins anew
    before = _resident_mib("VmRSS")
    getattr(case, options.side)()
    print(_resident_mib("VmHWM") - before - case.kept / 2**20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
