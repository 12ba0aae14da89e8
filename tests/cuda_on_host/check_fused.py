"""Check that nvcc fuses no product with a sum in the .cu files of a build.

A kernel that is executed on the host rounds every product, so a fused one would make other numbers
on a card and show nowhere before. A line x·y + z is compiled with the flags of one of the build's
own files, and its instructions are read: those for nvcc's virtual machine, and where nvdisasm is
found (the toolkit's, or PyPI's nvidia-cuda-nvdisasm) the card's. With -fmad=true the same line must
show what is looked for.

    check_fused.py BUILD/compile_commands.json SOURCE.cu
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

LINE = """
__global__ void line(float* x, double* y) {
  x[0] = x[0] * x[1] + x[2];
  y[0] = y[0] * y[1] + y[2];
}
"""
FUSED = re.compile(r"\b(fma\.rn\.f(?:32|64)|[FD]FMA)\b")


def flags_of(commands: Path, source: str) -> list[str]:
    """The compiler and its flags, without files and architectures."""
    entry = next(e for e in json.loads(commands.read_text()) if e["file"].endswith(f"/{source}"))
    words = shlex.split(entry["command"])
    start = next(i for i, word in enumerate(words) if Path(word).name == "nvcc")
    kept: list[str] = []
    skip = False
    for word in words[start:]:
        if skip or word in {"-o", "-MF", "-MT", "-x", "-c"} or word.endswith(source):
            skip = word in {"-o", "-MF", "-MT", "-x"}
        elif not word.startswith(("--generate-code", "-M")):
            kept.append(word)
    return kept


def disassembler(compiler: str) -> str | None:
    """Where nvdisasm is, if anywhere."""
    beside = Path(compiler).with_name("nvdisasm")
    packaged = Path(sysconfig.get_path("purelib")).glob("nvidia/**/bin/nvdisasm")
    found = [path for path in (beside, *packaged) if path.exists()]
    return str(found[0]) if found else shutil.which("nvdisasm")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fused(flags: list[str], nvdisasm: str | None) -> dict[str, list[str]]:
    """The fused instructions of each kind of code that can be read."""
    with tempfile.TemporaryDirectory() as folder:
        source, virtual, machine = (str(Path(folder, f"line.{s}")) for s in ("cu", "ptx", "cubin"))
        Path(source).write_text(LINE)
        run(*flags, "-arch=sm_80", "-ptx", source, "-o", virtual)
        found = {"virtual": FUSED.findall(Path(virtual).read_text())}
        if nvdisasm:
            run(*flags, "-arch=sm_80", "-cubin", source, "-o", machine)
            found["machine"] = FUSED.findall(run(nvdisasm, machine))
    return found


def main() -> int:
    flags = flags_of(Path(sys.argv[1]), sys.argv[2])
    nvdisasm = disassembler(flags[0])
    ours = fused(flags, nvdisasm)
    other = fused([f for f in flags if f != "-fmad=false"] + ["-fmad=true"], nvdisasm)
    for code in ours:
        print(f"{code} code: fused {ours[code] or 'nothing'}; with -fmad=true {other[code]}")
    return 0 if all(len(other[code]) == 2 and not ours[code] for code in ours) else 1


if __name__ == "__main__":
    sys.exit(main())
