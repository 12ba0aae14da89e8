"""Builds the package by driving CMake: configure, build, install into the package's folder.

Metadata is in pyproject.toml. The library is compiled against the torch of the environment that
runs this, so: pip install --no-build-isolation .

Environment:
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
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def project_version() -> str:
    found = re.search(r"project\(fulgurite VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    if found is None:
        sys.exit("fulgurite: CMakeLists.txt states no version")
    return found.group(1)


def torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        sys.exit(
            "fulgurite is compiled against the torch of its environment, and this one has none.\n"
            "Install torch (2.11 to 2.15), then: pip install --no-build-isolation ."
        )


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
    """libfulgurite.so, the headers, the CMake package and _C in one go."""

    def run(self) -> None:
        inplace = self.inplace or self.editable_mode
        package = (ROOT / "python" if inplace else Path(self.build_lib).resolve()) / "fulgurite"
        torch = torch_version()
        build = ROOT / os.environ.get("FULGURITE_BUILD_DIR", f"build/pip-torch{torch}")
        cmake = tool("cmake")
        if cmake is None:
            sys.exit("fulgurite needs CMake 3.25 or newer: pip install cmake")

        configure = [cmake, "-S", str(ROOT), "-B", str(build)]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        ninja = tool("ninja")
        if ninja is not None and not (build / "CMakeCache.txt").exists():
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("FULGURITE_CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        subprocess.run([cmake, "--install", str(build), "--prefix", str(package)], check=True)


setup(
    version=project_version(),
    package_dir={"": "python"},
    packages=find_packages("python"),
    package_data={"fulgurite": ["py.typed"]},
    # No sources: it marks the wheel as one for this interpreter and platform.
    ext_modules=[Extension("fulgurite._C", [])],
    cmdclass={"build_py": CleanBuildPy, "build_ext": CMakeBuild},
    options={"build": {"build_base": "build/setuptools"}},
)
