"""The changelog is in Keep a Changelog's form, what breaks first, with an entry for the version."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ["Breaking", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
UNRELEASED, *RELEASES = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]


def test_what_is_not_released_stands_first() -> None:
    assert UNRELEASED.startswith("[Unreleased]\n")


def test_releases_have_a_version_and_a_date_newest_first() -> None:
    versions = []
    for release in RELEASES:
        found = re.match(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d\n", release)
        assert found is not None, release[:40]
        versions.append(tuple(map(int, found.groups())))
    assert versions == sorted(set(versions), reverse=True)


def test_the_version_that_is_built_has_an_entry() -> None:
    (version,) = re.findall(r"VERSION (\S+) LANGUAGES", (ROOT / "CMakeLists.txt").read_text())
    assert any(release.startswith(f"[{version}] ") for release in RELEASES)


def test_sections_are_known_and_in_order() -> None:
    for entry in (UNRELEASED, *RELEASES):
        sections = re.findall(r"^### (.+)$", entry, re.M)
        assert sections == [name for name in SECTIONS if name in sections]
