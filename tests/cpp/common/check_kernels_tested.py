"""Check that a kernel test of each instruction set refers to each kernel that is compiled for it.

A kernel that no test calls has never run on the sets that this machine lacks, whatever else runs it
here. Kernels are the functions that kernel objects define for others; a declaration alone in a test
leaves no trace in its object, a call does.

    check_kernels_tested.py [--nm NM] --kernels OBJECT... --tests OBJECT...
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def symbols(nm: str, kind: str, paths: list[str]) -> set[str]:
    """Names of the symbols of one ``kind`` (nm's letter) in the objects at ``paths``."""
    command = [nm, "--extern-only", "-C", *paths]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = set()
    for line in listing.splitlines():
        before, letter, name = line.partition(f" {kind} ")
        if letter and (not before.strip() or before.strip().isalnum()):
            names.add(name)
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--kernels", nargs="+", required=True)
    parser.add_argument("--tests", nargs="+", required=True)
    arguments = parser.parse_args()
    kernels = symbols(arguments.nm, "T", arguments.kernels)
    untested = kernels - symbols(arguments.nm, "U", arguments.tests)
    for name in sorted(untested):
        print(f"{name.split('(')[0]} is called by no kernel test")
    print(f"{len(kernels)} kernels of all sets, {len(untested)} without a test")
    return 1 if untested or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
