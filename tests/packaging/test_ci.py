"""`.ci/run` calls the right goal of the Makefile, and workflows call nothing else."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / ".ci" / "run"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def called(tmp_path: Path):
    """called(*arguments): what `.ci/run` did, with a make that tells how it was called."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "CI=$CI" "$PWD" "$@"\n')
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RUN, *arguments], cwd="/", env=environment, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize(
    ("argument", "goal"),
    [
        ("", "test"),
        ("test", "test"),
        ("full", "test-full"),
        ("docs", "docs"),
        ("lint", "lint"),
        ("neon", "test-neon"),
        ("wheel", "wheel"),
        ("torch=2.14.1", "test TORCH=2.14.1"),
    ],
)
def test_each_argument_is_a_goal(called, argument: str, goal: str) -> None:
    ran = called(*argument.split())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"CI=true {ROOT} {goal}\n"
    assert re.search(rf"^{goal.split()[0]}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("arguments", [["bench"], ["torch=latest"], ["torch="], ["test", "docs"]])
def test_anything_else_is_refused(called, arguments: list[str]) -> None:
    ran = called(*arguments)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == "usage: .ci/run [test|full|docs|lint|neon|wheel|torch=X.Y.Z]\n"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_it(called, workflow: Path) -> None:
    text = workflow.read_text()
    assert ".ci/run ${{ matrix.what }}" in text
    assert not re.search(r"\bmake (?!python3$)\w|pytest|pip install", text, re.M)
    (whats,) = re.findall(r"what: \[(.+)\]", text)
    for what in whats.split(", "):
        assert called(what).returncode == 0
