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


def checked(*command: str | Path) -> None:
    build = os.environ.get("FULGURITE_BUILD_DIR", "build")
    ran = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "FULGURITE_BUILD_DIR": build},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    checked(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


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
    """run(code) in the fresh environment, away from the tree."""

    def run_code(code: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return subprocess.run(
            [installed, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run_code


@pytest.fixture
def package(installed: Path) -> Path:
    """The installed package's folder."""
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(installed.parents[1])}))
    return packages / "fulgurite"
