"""Sphinx settings: `make docs` builds the pages with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

project = "fulgurite"
author = "The fulgurite authors"
project_copyright = author
_cmake = (Path(__file__).parents[1] / "CMakeLists.txt").read_text()
_version = re.search(r"project\(fulgurite VERSION (\S+)", _cmake)
assert _version is not None
release = version = _version.group(1)

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"fulgurite {release}"
