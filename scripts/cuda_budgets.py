"""Compare what ptxas says of the library's kernels of CUDA with what they may use.

    scripts/cuda_budgets.py BUILD            fails if a count rose, or a kernel has no budget
    scripts/cuda_budgets.py BUILD --write    lowers budgets, adds new kernels, writes the page

Budgets are counts of registers, bytes of stack, of spills and of static shared memory, for each
kernel and architecture (cuda-budgets.json); an architecture that a kernel has none for is not
compared. They only go down: --write keeps a budget that is lower than the count, and who wants it
higher edits the file and says why in the commit. They are counts of one version of nvcc; another
one's are not compared (exit status 77).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGETS, PAGE = ROOT / "cuda-budgets.json", ROOT / "docs" / "internals" / "cuda_evidence.md"
NOT_COMPARED = 77
COUNTS = ("registers", "stack", "spills", "shared")
Counts = dict[str, int]
Kernels = dict[str, dict[str, Counts]]  # by name and architecture

PAGE_TEXT = """\
# Evidence for kernels of CUDA

<!-- Made by scripts/cuda_budgets.py --write from cuda-budgets.json. -->

Every kernel of the table is compiled by nvcc {nvcc} for the architectures of its row, and executed
on the host under the checker, by the tests of its family ([how](cuda.md)). **None was run on a GPU;
none was timed.**

The registers of a thread, the bytes of memory that it takes for arrays (stack) and for what did
not fit its registers (spills), and the bytes of static shared memory of a block: no build may have
more. Dynamic shared memory is the launch's choice and not counted here.

| kernel | compiled for sm_ | registers | stack | spills | static shared memory |
|---|---|---|---|---|---|"""

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def demangled(names: Iterable[str]) -> list[str]:
    """``fulgurite::cuda::unscale``: no parameters, and no name of an unnamed namespace."""
    listing = subprocess.run(
        ["c++filt", "--no-params"],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        re.sub(r"_GLOBAL__N__\w+::|\(anonymous namespace\)::", "", line)
        for line in listing.stdout.splitlines()
    ]


def counts_of(text: str) -> Kernels:
    """From what ``ptxas -v`` printed."""
    found: list[tuple[str, str, Counts]] = []
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            found.append((entry[1], entry[2], dict.fromkeys(COUNTS, 0)))
        elif memory := _MEMORY.search(line):
            stack, stores, loads = map(int, memory.groups())
            found[-1][2].update(stack=stack, spills=stores + loads)
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            found[-1][2].update(registers=int(used[1]), shared=int(shared[1]) if shared else 0)
    kernels: Kernels = {}
    names = demangled(name for name, _, _ in found)
    for name, (_, architecture, counts) in zip(names, found, strict=True):
        kernels.setdefault(name, {})[architecture] = counts
    return kernels


def complaints(kernels: Kernels, budgets: Kernels) -> list[str]:
    """What is over its budget or has none, and budgets of kernels that are gone."""
    said = [f"{name}: there is no such kernel" for name in sorted(budgets.keys() - kernels.keys())]
    said += [f"{name}: has no budget" for name in sorted(kernels.keys() - budgets.keys())]
    for name in sorted(kernels.keys() & budgets.keys()):
        for architecture, counts in sorted(kernels[name].items()):
            budget = budgets[name].get(architecture, counts)
            said += [
                f"{name}, sm_{architecture}: {counts[what]} {what}, its budget is {budget[what]}"
                for what in COUNTS
                if counts[what] > budget[what]
            ]
    return said


def lowered(kernels: Kernels, budgets: Kernels) -> Kernels:
    """The budgets of kernels that there are, none higher than before. Architectures that were not
    built keep theirs."""
    result: Kernels = {}
    for name, architectures in sorted(kernels.items()):
        before = budgets.get(name, {})
        now = {
            architecture: {
                what: min(count, before.get(architecture, counts)[what])
                for what, count in counts.items()
            }
            for architecture, counts in architectures.items()
        }
        result[name] = dict(sorted((before | now).items(), key=lambda item: int(item[0])))
    return result


def cell(kernel: dict[str, Counts], what: str) -> str:
    """A count, or each with the architectures that have it."""
    by_count: dict[int, list[str]] = {}
    for architecture, counts in kernel.items():
        by_count.setdefault(counts[what], []).append(architecture)
    if len(by_count) == 1:
        return str(next(iter(by_count)))
    return "; ".join(f"{count} ({', '.join(names)})" for count, names in by_count.items())


def page(nvcc: str, budgets: Kernels) -> str:
    """docs/internals/cuda_evidence.md."""
    rows = [
        f"| `{re.sub('fulgurite::(cuda::)?', '', name)}` | {', '.join(kernel)} "
        f"| {' | '.join(cell(kernel, what) for what in COUNTS)} |"
        for name, kernel in budgets.items()
    ]
    return "\n".join([PAGE_TEXT.format(nvcc=nvcc), *rows, ""])


def text_of(nvcc: str, budgets: Kernels) -> str:
    """cuda-budgets.json, a line for an architecture of a kernel."""
    kernels = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f'   "{a}": {json.dumps(counts)}' for a, counts in kernel.items())
        + "\n  }"
        for name, kernel in budgets.items()
    ]
    return f'{{\n "nvcc": "{nvcc}",\n "kernels": {{\n' + ",\n".join(kernels) + "\n }\n}\n"


def nvcc_version(build: Path) -> str:
    files = list(build.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"))
    found = (
        re.search(r'CMAKE_CUDA_COMPILER_VERSION "(\d+\.\d+)', files[0].read_text())
        if files
        else None
    )
    if found is None:
        sys.exit(f"{build}: built without CUDA")
    return found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    files = sorted(arguments.build.glob("CMakeFiles/fulgurite_cuda_*.dir/**/*.ptxas"))
    kernels = counts_of("".join(file.read_text() for file in files))
    if not kernels:
        sys.exit(f"{arguments.build}: no kernels; build the target fulgurite_cuda_kernels")
    nvcc = nvcc_version(arguments.build)
    held = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {"nvcc": nvcc, "kernels": {}}
    if held["nvcc"] != nvcc and not arguments.write:
        print(f"budgets are counts of nvcc {held['nvcc']}, and this is {nvcc}")
        return NOT_COMPARED
    budgets: Kernels = held["kernels"]
    if arguments.write:
        budgets = lowered(kernels, budgets)
        BUDGETS.write_text(text_of(nvcc, budgets))
        PAGE.write_text(page(nvcc, budgets))
    said = complaints(kernels, budgets)
    if PAGE.read_text() != page(held["nvcc"], budgets):
        said.append(f"{PAGE.name} is not made from {BUDGETS.name}: write it again")
    print("\n".join(said) or f"{len(kernels)} kernels are within their budgets")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
