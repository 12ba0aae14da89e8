"""Runs the README's first example with the installed package, and says what ran it.

A program, so that any interpreter can: ``python tests/packaging/first_example.py``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import fulgurite

README = Path(__file__).resolve().parents[2] / "README.md"

(example, *_) = re.findall(r"^```python\n(.+?)^```$", README.read_text(), re.M | re.S)
names: dict[str, Any] = {}
exec(compile(example, str(README), "exec"), names)
assert math.isfinite(names["loss"].item())
print(Path(fulgurite.__file__).parent)
print("\n".join(fulgurite.show_config().splitlines()[:2]))
