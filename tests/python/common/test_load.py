"""FULGURITE_LIBRARY names the library that is loaded."""

from __future__ import annotations

import os
import subprocess
import sys


def test_another_library_is_loaded_or_nothing_is() -> None:
    environment = os.environ | {"FULGURITE_LIBRARY": "nowhere/libfulgurite.so"}
    program = [sys.executable, "-c", "import fulgurite"]
    ran = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "ImportError: fulgurite: loading nowhere/libfulgurite.so failed" in ran.stderr
