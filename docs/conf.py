"""Sphinx settings: `make docs` builds the pages with warnings as errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS / "_ext"), str(DOCS.parent / "python")]

import performance  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

project = "fulgurite"
author = "The fulgurite authors"
project_copyright = author
_cmake = (DOCS.parent / "CMakeLists.txt").read_text()
_version = re.search(r"project\(fulgurite VERSION (\S+)", _cmake)
assert _version is not None
release = version = _version.group(1)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "operators"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

highlight_language = "none"  # formulas and commands; code says its language

html_theme = "furo"
html_title = f"fulgurite {release}"
html_static_path = ["_static"]
html_css_files = ["fulgurite.css"]


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", lambda _: performance.write())
