"""Builds the C++ program of tests/interop/consumer once and runs it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fulgurite

Tensors = dict[str, torch.Tensor]
Consumer = Callable[..., Tensors]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def consumer_program() -> Path:
    """The compiled program; its folder stays, so that a second run compiles nothing."""
    build = ROOT / os.environ.get("FULGURITE_BUILD_DIR", "build") / "interop"
    package = Path(fulgurite.__file__).parent
    configure = [
        *("cmake", "-G", "Ninja", "-S", str(Path(__file__).parent / "consumer"), "-B", str(build)),
        f"-Dfulgurite_DIR={package}/share/cmake/fulgurite",
        f"-DFULGURITE_TORCH_DIR={Path(torch.__file__).parent}",
    ]
    for command in (configure, ["cmake", "--build", str(build), "--parallel", "2"]):
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return build / "consumer"


@pytest.fixture
def consumer(consumer_program: Path, tmp_path: Path) -> Consumer:
    """consumer(command, *paths, inputs=…): the dict of tensors that the program returns."""

    def run(*command: str | Path, inputs: Tensors) -> Tensors:
        torch.save(inputs, tmp_path / "inputs.pt")
        argv = [
            str(consumer_program),
            str(torch.get_num_threads()),
            str(tmp_path / "inputs.pt"),
            str(tmp_path / "outputs.pt"),
            *map(str, command),
        ]
        # Without Python's variables: nothing of it is there for the program to find.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        ran = subprocess.run(argv, capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
        return torch.load(tmp_path / "outputs.pt", weights_only=False)

    return run
