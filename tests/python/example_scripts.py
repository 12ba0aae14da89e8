"""A script of examples/, run as a reader would: ``--quick``, and what it printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COST = r" +\d+\.\d ms a step, peak +\d+\.\d MiB, loss \d+\.\d{4} to \d+\.\d{4}$"


def check_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what a step cost before and after, and that the losses agree."""
    script = EXAMPLES / f"{name}.py"
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("sys.argv", [str(script), "--quick"])
    runpy.run_path(str(script), run_name="__main__")
    before, after, agreement = capsys.readouterr().out.splitlines()[-3:]
    assert re.match("before:" + COST, before)
    assert re.match("after: " + COST, after)
    apart, bound = re.findall(r"differ by at most (\S+) \(bound (\S+)\)", agreement)[0]
    assert float(apart) <= float(bound)
