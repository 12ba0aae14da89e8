"""Check scripts/check_kernel.sh from outside of the tree: on a kernel that is right, with bugs, and
with a wrong result; and what the executor takes from the environment.

    check_check_kernel.py SCRIPT
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
#include "cuda/host/memory.h"
#include "cuda/launch.h"

__global__ void reverse(float* data) {
  CUX_SHARED(float, values, 64);
  values[threadIdx.x] = data[threadIdx.x];
#ifndef NO_BARRIER
  __syncthreads();
#endif
  data[threadIdx.x] = values[63 - threadIdx.x];
}

int main() {
  const cux::host::Array<float> data(std::vector<float>(64, 2.f));
  data[0] = 1;
  cux::launch(reverse, dim3(1), dim3(64), 0, nullptr, data.data());
  return data[EXPECTED] != 1;
}
"""
BARRIER = 1 + PROGRAM.splitlines().index("  data[threadIdx.x] = values[63 - threadIdx.x];")


def main() -> int:
    script = sys.argv[1]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        source, counts = Path(folder, "reverse.cpp"), Path(folder, "counts.json")
        source.write_text(PROGRAM)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CUX_")}
        environment = {**clean, "CUX_BUILD": folder}

        def check(status: int, says: str, *flags: str, **variables: str) -> None:
            nonlocal failures
            ran = subprocess.run(
                [script, str(source), *flags],
                cwd=folder,
                env=environment | variables,
                capture_output=True,
                text=True,
            )
            if ran.returncode != status or says not in ran.stdout + ran.stderr:
                print(f"{flags} {variables}: expected {status} and {says!r}, got {ran}")
                failures += 1

        check(0, "sm_90: nothing found", "-DEXPECTED=63", CUX_COUNTS=str(counts))
        lines = [json.loads(line) for line in counts.read_text().splitlines()]
        if [(c["kernel"], c["arch"], c["barriers"]) for c in lines] != [
            ("reverse", 80, 1),
            ("reverse", 90, 1),
        ]:
            print(f"counts: {lines}")
            failures += 1
        read = next(c for c in lines[0]["lines"] if c["space"] == "global" and not c["write"])
        if (read["bytes"], read["sectors"], read["ideal"], read["bytes_a_lane"]) != (256, 8, 8, 4):
            print(f"a line of the counts: {read}")
            failures += 1
        check(1, f"reverse.cpp:{BARRIER}", "-DEXPECTED=63", "-DNO_BARRIER", CUX_ARCH="80")
        check(1, "the program failed (1)", "-DEXPECTED=0", CUX_ARCH="80")
        check(1, "CUX_ARCH: expected 80, 86, 89 or 90, got 75", "-DEXPECTED=63", CUX_ARCH="75")
        check(1, "CUX_ASYNC: expected late or early, got now", "-DEXPECTED=63", CUX_ASYNC="now")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
