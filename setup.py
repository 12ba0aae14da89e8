"""Builds the package by driving CMake: configure, build, install into the package's folder.

Metadata is in pyproject.toml. The library is compiled against the torch of the environment that
runs this, so: pip install --no-build-isolation .

A wheel serves every Python, and the torches whose libraries it holds: the one of the environment,
or with FULGURITE_BUILT those of several builds (make wheel).

Environment:
    FULGURITE_BUILT       build folders, one for each torch, that only have to be installed
    FULGURITE_BUILD_DIR   CMake's build folder, reused if it exists (build/pip-torch<version>)
    FULGURITE_CMAKE_ARGS  further arguments for cmake, for example -DFULGURITE_PYTHON=OFF
    MAX_JOBS              parallel compilations
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SUPPORTED = "torch>=2.11,<2.16"
BUILT = [ROOT / folder for folder in shlex.split(os.environ.get("FULGURITE_BUILT", ""))]


def project_version() -> str:
    found = re.search(r"project\(fulgurite VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    if found is None:
        sys.exit("fulgurite: CMakeLists.txt states no version")
    return found.group(1)


def torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def torch_of(build: Path) -> str:
    found = re.search(
        r"^FULGURITE_TORCH_VERSION:INTERNAL=(.+)$", (build / "CMakeCache.txt").read_text(), re.M
    )
    if found is None:
        sys.exit(f"fulgurite: {build} says no version of torch")
    return found.group(1)


def torch_requirement() -> str:
    """The minor versions that there are libraries for; all supported ones without any."""
    versions = [torch_of(build) for build in BUILT] if BUILT else [torch_version()]
    minors = sorted({int(version.split(".")[1]) for version in versions if version})
    if not minors:
        return SUPPORTED
    first, last = minors[0], minors[-1]
    absent = [f"!=2.{minor}.*" for minor in range(first, last) if minor not in minors]
    return ",".join([f"torch>=2.{first}", f"<2.{last + 1}", *absent])


def tool(name: str) -> str | None:
    """A program beside the interpreter (as PyPI's cmake and ninja are) or on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


class CleanBuildPy(build_py):
    """build_py into an empty folder: a module that was removed does not come back in a wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "fulgurite", ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """The libraries, the headers, the CMake package and _C in one go."""

    def run(self) -> None:
        inplace = self.inplace or self.editable_mode
        package = (ROOT / "python" if inplace else Path(self.build_lib).resolve()) / "fulgurite"
        cmake = tool("cmake")
        if cmake is None:
            sys.exit("fulgurite needs CMake 3.25 or newer: pip install cmake")
        for build in BUILT or [self.build(cmake)]:
            subprocess.run([cmake, "--install", str(build), "--prefix", str(package)], check=True)

    def build(self, cmake: str) -> Path:
        torch = torch_version()
        if torch is None:
            sys.exit(
                "fulgurite is compiled against the torch of its environment, and this one has "
                "none.\nInstall torch (2.11 to 2.15), then: pip install --no-build-isolation ."
            )
        build = ROOT / os.environ.get("FULGURITE_BUILD_DIR", f"build/pip-torch{torch}")
        configure = [cmake, "-S", str(ROOT), "-B", str(build)]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        ninja = tool("ninja")
        if ninja is not None and not (build / "CMakeCache.txt").exists():
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("FULGURITE_CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        return build


class AnyPython(bdist_wheel):
    """The library knows no Python, and _C keeps to the limited API and may be missing."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    version=project_version(),
    install_requires=[torch_requirement(), "numpy"],
    package_dir={"": "python"},
    packages=find_packages("python"),
    package_data={"fulgurite": ["py.typed"]},
    # No sources: it marks the wheel as one for this platform.
    ext_modules=[Extension("fulgurite._C", [])],
    cmdclass={"build_py": CleanBuildPy, "build_ext": CMakeBuild, "bdist_wheel": AnyPython},
    options={"build": {"build_base": "build/setuptools"}},
)
