"""A wheel of the tree in a fresh environment that borrows torch from the running one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment() -> dict[str, str]:
    """Without Python's variables: a tree on PYTHONPATH would pass for an installed package."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def checked(*command: str | Path, **variables: str) -> str:
    ran = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` packs of the libraries that are built."""
    build = os.environ.get("FULGURITE_BUILD_DIR", "build")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = checked(ROOT / "scripts/wheel.sh", tmp_path_factory.mktemp("wheel"), build, PATH=path)
    return Path(printed.strip())


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the fresh environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    checked(
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--no-index",
        "--no-deps",
        wheel,
    )
    # torch and numpy are found through this; the tree's editable installation is not, because
    # path files in the borrowed folder are not followed.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """run(code), or run(program=path), in the fresh environment, away from the tree."""

    def run_it(code: str = "", program: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed, program] if program else [installed, "-c", code],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )

    return run_it


@pytest.fixture
def package(installed: Path) -> Path:
    """The installed package's folder."""
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(installed.parents[1])}))
    return packages / "fulgurite"
