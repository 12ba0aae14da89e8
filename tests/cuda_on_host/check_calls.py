"""Check that objects of .cu files call nothing of CUDA's runtime but what launches kernels.

Memory comes from torch and nobody waits for the card: a blocking copy, an allocation or a
…Synchronize in a launcher would stall every training step, and break the capture of graphs.

    check_calls.py [--nm NM] OBJECT...
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

ALLOWED = {
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaLaunchKernel",
    "cudaStreamIsCapturing",
}
# What nvcc itself makes of kernels and of <<<…>>>.
GENERATED = re.compile(r"__cuda\w+|cudaLaunchKernelExC|__cudaLaunchKernel\w*")


def calls(nm: str, path: str) -> set[str]:
    """Undefined symbols of CUDA's runtime and driver in an object."""
    command = [nm, "--undefined-only", path]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in listing.splitlines() if line.strip()}
    return {n for n in names if re.match(r"_*(cuda|cu[A-Z])", n) and not GENERATED.fullmatch(n)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("objects", nargs="+")
    arguments = parser.parse_args()
    found = {path: calls(arguments.nm, path) for path in arguments.objects}
    wrong = [(path, name) for path, names in found.items() for name in sorted(names - ALLOWED)]
    for path, name in wrong:
        print(f"{path}: {name} is not allowed")
    print(f"{len(found)} objects call {sorted(set().union(*found.values()))}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
