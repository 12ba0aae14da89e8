"""Change a kernel in one place at a time, and check that a test on the host notices every change.

    scripts/mutants.py tests/cuda_on_host/product.cuh tests/cuda_on_host/product_test.cpp
    scripts/mutants.py csrc/optim/cuda/kernels/units.cuh tests/cuda_on_host/optim/*_test.cpp \\
        --beside csrc/optim/cpu/kernels/*.cpp

Each barrier, wait and commit is removed, each wait lets one group more be under way, each predicate
is true, and each bound is moved by one. A change that neither the checker nor the numbers notice is
a hole in the tests, unless it stands in equivalent_mutants.toml beside them, with the reason why
the kernel is as right with it. What stands there and is noticed fails too. What tests need beside
the kernel, those of the CPU that they compare with, is named by --beside.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHECK = Path(__file__).with_name("check_kernel.sh")
SOURCES = Path(__file__).resolve().parents[1] / "csrc"
STATEMENT = re.compile(
    r"\b(?:__syncthreads|__syncwarp|cux::(?:barrier_sync|barrier_arrive|cp_async_commit|cp_async_wait<\d+>))"
    r"\([^()]*\);"
)
WAIT = re.compile(r"cp_async_wait<(\d+)>")
BOUND = re.compile(r" < ")
IF = re.compile(r"\bif \(")
CONDITION = re.compile(r"\bbool \w+ = ([^;]+);")
TIMEOUT_S = 300  # a kernel that loops for ever is noticed


@dataclass(frozen=True)
class Mutant:
    """A line of the kernel and what stands in its place."""

    number: int
    was: str
    now: str

    @property
    def key(self) -> tuple[str, str]:
        return self.was.strip(), self.now.strip()


def closing(text: str, start: int) -> int:
    """Where the parenthesis that is open at ``start`` closes."""
    depth = 1
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"a condition that goes over several lines: {text}")


def conjuncts(line: str, start: int, end: int) -> Iterator[str]:
    """The line with each part of a condition a && b made true."""
    begin = start
    for part in line[start:end].split(" && "):
        yield line[:begin] + "true" + line[begin + len(part) :]
        begin += len(part) + len(" && ")


def changes(line: str) -> Iterator[str]:
    for match in STATEMENT.finditer(line):
        yield line[: match.start()] + line[match.end() :]
    for match in WAIT.finditer(line):
        weaker = f"cp_async_wait<{int(match[1]) + 1}>"
        yield line[: match.start()] + weaker + line[match.end() :]
    for match in BOUND.finditer(line):
        yield line[: match.start()] + " <= " + line[match.end() :]
    for match in IF.finditer(line):
        yield from conjuncts(line, match.end(), closing(line, match.end()))
    for match in CONDITION.finditer(line):
        yield from conjuncts(line, match.start(1), match.end(1))


def mutants(kernel: Path) -> Iterator[Mutant]:
    for number, line in enumerate(kernel.read_text().splitlines()):
        code = line.split("//")[0]
        if code.startswith("#") or "template" in code:
            continue
        for changed in changes(code):
            if changed == code:
                continue
            yield Mutant(number, line, changed + line[len(code) :])


def include_name(kernel: Path) -> Path:
    """What a file is included as."""
    return kernel.relative_to(SOURCES) if kernel.is_relative_to(SOURCES) else Path(kernel.name)


def check(test: Path, includes: list[Path], build: Path, beside: list[Path]) -> bool:
    environment = {
        **os.environ,
        "CUX_BUILD": str(build),
        "CUX_ARCH": "80",
        "CUX_LINK": " ".join(map(str, beside)),
    }
    flags = [f"-iquote{folder}" for folder in includes]
    try:
        ran = subprocess.run(
            [str(CHECK), str(test), *flags], env=environment, capture_output=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def is_noticed(
    mutant: Mutant, kernel: Path, tests: list[Path], build: Path, beside: list[Path]
) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        lines = kernel.read_text().splitlines()
        lines[mutant.number] = mutant.now
        changed = Path(folder, include_name(kernel))
        changed.parent.mkdir(parents=True, exist_ok=True)
        changed.write_text("\n".join(lines) + "\n")
        shutil.copy(build / "executor.o", folder)
        copies = [Path(shutil.copy(test, folder)) for test in tests]
        includes = [Path(folder), *dict.fromkeys(test.parent for test in tests)]
        return not all(check(test, includes, Path(folder), beside) for test in copies)


def compiled(kernels: list[Path], build: Path) -> list[Path]:
    """Objects of the CPU's kernels."""
    objects = []
    for kernel in kernels:
        objects.append(build / f"{kernel.stem}.o")
        command = [
            os.environ.get("CXX", "g++"),
            "-std=gnu++20",
            "-O2",
            "-ffp-contract=off",
            "-Wno-psabi",
            f"-I{SOURCES}",
        ]
        subprocess.run([*command, "-c", str(kernel), "-o", str(objects[-1])], check=True)
    return objects


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel", type=Path)
    parser.add_argument("tests", type=Path, nargs="+")
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    kernel = arguments.kernel.resolve()
    tests = [test.resolve() for test in arguments.tests]

    listed = tests[0].with_name("equivalent_mutants.toml")
    entries = tomllib.loads(listed.read_text())["mutant"] if listed.exists() else []
    equivalent = {(e["was"], e["now"]) for e in entries if e["file"] == kernel.name}
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder)
        beside = compiled(arguments.beside, build)
        for test in tests:
            if not check(test, [test.parent], build, beside):
                parser.error(f"{test} fails without any change")
        every = list(mutants(kernel))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            noticed = list(pool.map(lambda m: is_noticed(m, kernel, tests, build, beside), every))

    survivors = {m.key for m, seen in zip(every, noticed, strict=True) if not seen}
    for was, now in sorted(survivors - equivalent):
        print(f"not noticed in {kernel.name}:\n- {was}\n+ {now}")
    for was, now in sorted(equivalent - survivors):
        print(f"listed as equivalent, but noticed or gone:\n- {was}\n+ {now}")
    print(f"{len(every)} mutants, {sum(noticed)} noticed, {len(equivalent)} listed as equivalent")
    return 1 if survivors != equivalent or not every else 0


if __name__ == "__main__":
    sys.exit(main())
