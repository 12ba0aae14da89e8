"""What the tests of every folder, and processes they start, share: set before torch is loaded."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

# Where cores are shared, threads that spin at a barrier cost more than the small calls between
# them. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Inductor's cache in the user's folder knows operators by name, not by schema: code compiled for an
# earlier build would be run with this one. Workers and subprocesses inherit the folder.
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_made = None if _VARIABLE in os.environ else tempfile.mkdtemp(prefix="fulgurite-inductor-")
if _made is not None:
    os.environ[_VARIABLE] = _made


def pytest_unconfigure(config: pytest.Config) -> None:
    if _made is not None:
        shutil.rmtree(_made, ignore_errors=True)
