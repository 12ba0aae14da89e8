"""The torch that a wheel asks for: the versions that it holds libraries for, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def required_torch(folder: Path, versions: list[str]) -> str:
    """The requirement in the metadata of a wheel of builds against these versions."""
    builds = []
    for version in versions:
        build = folder / f"build-{version}"
        build.mkdir()
        (build / "CMakeCache.txt").write_text(f"FULGURITE_TORCH_VERSION:INTERNAL={version}\n")
        builds.append(str(build))
    ran = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)],
        cwd=ROOT,
        env=os.environ | {"FULGURITE_BUILT": " ".join(builds)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    (line,) = (
        line
        for line in (folder / "fulgurite.egg-info" / "requires.txt").read_text().splitlines()
        if line.startswith("torch")
    )
    return line


@pytest.mark.parametrize(
    ("versions", "required"),
    [
        (["2.13.0"], "torch<2.14,>=2.13"),
        (["2.14.1", "2.13.0"], "torch<2.15,>=2.13"),
        (["2.11.0", "2.13.0", "2.15.0"], "torch!=2.12.*,!=2.14.*,<2.16,>=2.11"),
    ],
)
def test_versions_that_there_are_libraries_for(
    tmp_path: Path, versions: list[str], required: str
) -> None:
    assert required_torch(tmp_path, versions) == required
