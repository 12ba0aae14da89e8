"""Every place that states the supported range of torch states the same one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINORS = re.compile(r"2\.(\d+)")


def text(path: str) -> str:
    return (ROOT / path).read_text()


def minors(pattern: str, path: str) -> list[int]:
    """The minor versions that stand in the one place of the file that the pattern finds."""
    (found,) = re.findall(pattern, text(path))
    return list(map(int, MINORS.findall(found)))


FIRST, PAST = minors(r'"torch(>=[\d.]+,<[\d.]+)"', "setup.py")


def test_the_package_and_cmake_agree() -> None:
    assert minors(r"if\((.*VERSION_LESS.*)\)", "cmake/torch.cmake") == [FIRST, PAST]


def test_what_users_read_agrees() -> None:
    for path in ("cmake/torch.cmake", "setup.py", "README.md", "docs/internals/building.md"):
        ranges = set(re.findall(r"2\.\d+ to 2\.\d+", text(path)))
        assert ranges == {f"2.{FIRST} to 2.{PAST - 1}"}, path


def test_every_minor_version_is_tested() -> None:
    """The default of requirements/torch.txt on every change, the others at night."""
    default = minors(r"torch==(.*)", "requirements/torch.txt")
    nightly = minors(r"what: \[(.+)\]", ".github/workflows/nightly.yml")
    assert sorted(default + nightly) == list(range(FIRST, PAST))


def test_a_release_holds_every_minor_version() -> None:
    """Built against the very versions that are tested."""
    (released,) = re.findall(r'TORCHES: "(.*)"', text(".github/workflows/release.yml"))
    nightly = re.findall(r"torch=([\d.]+)", text(".github/workflows/nightly.yml"))
    default = re.findall(r"torch==(.*)", text("requirements/torch.txt"))
    assert sorted(released.split()) == sorted(default + nightly)
