"""find_package(fulgurite): the library for the caller's torch, or a word on what is missing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fulgurite

pytestmark = pytest.mark.slow
PACKAGE = Path(fulgurite.__file__).parent
TORCH = Path(torch.__file__).parent
MINOR = ".".join(torch.__version__.split(".")[:2])
PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(caller LANGUAGES CXX)
{before}
find_package(fulgurite REQUIRED)
get_target_property(location fulgurite::fulgurite LOCATION)
get_target_property(links fulgurite::fulgurite INTERFACE_LINK_LIBRARIES)
get_target_property(includes fulgurite::fulgurite INTERFACE_INCLUDE_DIRECTORIES)
message(STATUS "found ${{location}} ${{links}} ${{includes}}")
"""
Configure = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """configure(*definitions, before=…): a project that looks for the package."""

    def run(*definitions: str, before: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(before=before))
        where = f"-Dfulgurite_DIR={PACKAGE}/share/cmake/fulgurite"
        command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", where, *definitions]
        return subprocess.run(command, capture_output=True, text=True)

    return run


def test_folder_of_torch(configure: Configure) -> None:
    ran = configure(f"-DFULGURITE_TORCH_DIR={TORCH}")
    assert ran.returncode == 0, ran.stderr
    assert f"found {PACKAGE}/lib/torch{MINOR}/libfulgurite.so" in ran.stdout
    assert f"{TORCH}/lib/libtorch_cpu.so" in ran.stdout
    assert f"{PACKAGE}/include;{TORCH}/include" in ran.stdout


def test_torch_that_was_found_before(configure: Configure) -> None:
    """The target that find_package(Torch) makes, which itself may ask for a CUDA toolkit."""
    target = f"""add_library(torch_cpu SHARED IMPORTED)
    set_target_properties(torch_cpu PROPERTIES IMPORTED_LOCATION_RELEASE {TORCH}/lib/libtorch_cpu.so
                                               IMPORTED_CONFIGURATIONS RELEASE)"""
    ran = configure(before=target)
    assert ran.returncode == 0, ran.stderr
    assert f"found {PACKAGE}/lib/torch{MINOR}/libfulgurite.so torch_cpu;c10" in ran.stdout


def test_torch_that_there_is_no_library_for(configure: Configure, tmp_path: Path) -> None:
    header = tmp_path / "torch" / "include" / "torch" / "headeronly" / "version.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 99\n")
    ran = configure(f"-DFULGURITE_TORCH_DIR={tmp_path}/torch")
    assert ran.returncode != 0
    words = " ".join(ran.stderr.split())
    assert f"no library for torch 2.99 of {tmp_path}/torch" in words
    assert re.search(rf"lib holds .*\btorch{MINOR}\b", words)


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ([], "set FULGURITE_TORCH_DIR to the folder of the torch package, or find_package(Torch)"),
        (["-DFULGURITE_TORCH_DIR=/nowhere"], "/nowhere is no folder of torch"),
    ],
)
def test_no_torch(configure: Configure, definitions: list[str], message: str) -> None:
    ran = configure(*definitions)
    assert ran.returncode != 0
    assert message in " ".join(ran.stderr.split())
