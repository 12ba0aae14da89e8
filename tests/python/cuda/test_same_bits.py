"""Kernels of CUDA give the CPU's bits, in the operators that promise them; NaN is NaN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common_checks import Results, assert_same_bits, samples_of
from cuda_families import OPERATORS as NAMES
from fulgurite.testing import OPERATORS, evaluate
from fulgurite.testing.backend import current, kernels

Cases = dict[str, Results]


def cases() -> Cases:
    """Every sample of every such operator in every dtype that CUDA has."""
    found: Cases = {}
    for name in sorted(NAMES):
        operator = OPERATORS[name]
        for dtype in operator.dtypes:
            if dtype == torch.float64:
                continue
            for sample, call in samples_of(name, dtype, 0).items():
                results = evaluate(operator.op, operator, call)
                found[f"{name}-{sample}-{dtype}"] = {k: t.cpu() for k, t in results.items()}
    return found


@pytest.fixture(scope="module")
def of_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """From another process: a library has the kernels of one device for the CPU's tensors."""
    file = tmp_path_factory.mktemp("bits") / "cases.pt"
    environment = {k: v for k, v in os.environ.items() if k != "FULGURITE_LIBRARY"}
    path = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    program = [sys.executable, __file__, str(file)]
    subprocess.run(program, env=environment | {"PYTHONPATH": path}, check=True)
    return dict(torch.load(file))


def test_bits(of_the_cpu: Cases) -> None:
    found = cases()
    assert found.keys() == of_the_cpu.keys()
    assert len(found) > 40
    for case, results in found.items():
        expected = of_the_cpu[case]
        for label, tensor in results.items():
            assert torch.equal(tensor.isnan(), expected[label].isnan()), case
        assert_same_bits(*({k: t.nan_to_num() for k, t in r.items()} for r in (results, expected)))


def test_kernels_of_cuda_ran() -> None:
    cases()
    rows = kernels()
    assert {row["device"] for row in rows.values()} == {"cuda"}
    assert all(row["calls"] > 0 for row in rows.values())


if __name__ == "__main__":
    assert current().kernels == "cpu"
    torch.save(cases(), sys.argv[1])
