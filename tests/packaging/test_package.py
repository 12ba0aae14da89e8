"""What `pip install .` puts where, and that it works away from the source tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

USE = """
import torch, fulgurite
q = torch.randn(1, 2, 8, 16, requires_grad=True)
out, lse = torch.ops.fulgurite.attention(q, q, q, causal=True)
out.sum().backward()
assert q.grad is not None
"""


def needed(library: Path) -> set[str]:
    """Names of the shared libraries that `library` links."""
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic.stdout))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert re.search(r"-cp3\d+-cp3\d+-linux_\w+\.whl$", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "fulgurite/__init__.py",
        "fulgurite/_build_info.py",
        "fulgurite/py.typed",
        "fulgurite/lib/libfulgurite.so",
        "fulgurite/include/fulgurite/attention.h",
        "fulgurite/share/cmake/fulgurite/fulguriteConfig.cmake",
    ):
        assert wanted in names
    assert any(re.fullmatch(r"fulgurite/_C\..*\.so", name) for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {re.sub(r"-.*(?=\.dist-info)", "", top) for top in tops} == {
        "fulgurite",
        "fulgurite.dist-info",
    }


def test_installed_package_computes(run, package: Path) -> None:
    ran = run(USE + "print(fulgurite.__file__); print(fulgurite.show_config())")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(package))
    assert f"built with torch {torch.__version__.split('+')[0]}" in ran.stdout


def test_operators_need_no_extension_module(run, package: Path, tmp_path: Path) -> None:
    (extension,) = package.glob("_C.*.so")
    hidden = tmp_path / extension.name
    shutil.move(extension, hidden)
    try:
        ran = run(USE + "assert fulgurite._C is None; print(fulgurite.show_config())")
    finally:
        shutil.move(hidden, extension)
    assert ran.returncode == 0, ran.stderr
    assert "instruction set:" in ran.stdout


MAJOR, MINOR = map(int, torch.__version__.split(".")[:2])


@pytest.mark.parametrize(
    "version", [f"{MAJOR}.{MINOR - 1}.1", f"{MAJOR}.{MINOR + 1}.0", f"{MAJOR + 1}.{MINOR}.0"]
)
def test_another_minor_version_of_torch_is_refused(run, version: str) -> None:
    ran = run(f"import torch; torch.__version__ = '{version}'; import fulgurite")
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fulgurite was built with torch")
    assert version in last
    assert "pip install --no-build-isolation" in last


def test_another_patch_version_of_torch_is_accepted(run) -> None:
    ran = run(f"import torch; torch.__version__ = '{MAJOR}.{MINOR}.9+cu999'; import fulgurite")
    assert ran.returncode == 0, ran.stderr


def test_missing_library_says_how_to_build_it(run, package: Path, tmp_path: Path) -> None:
    library = package / "lib" / "libfulgurite.so"
    shutil.move(library, tmp_path / "hidden.so")
    try:
        ran = run("import fulgurite")
    finally:
        shutil.move(tmp_path / "hidden.so", library)
    assert "ImportError: fulgurite: libfulgurite.so is not beside the package" in ran.stderr


def test_broken_library_lists_likely_causes(run, package: Path, tmp_path: Path) -> None:
    library = package / "lib" / "libfulgurite.so"
    shutil.copy(library, tmp_path / "whole.so")
    try:
        library.write_bytes(b"not a shared library")
        ran = run("import fulgurite")
    finally:
        shutil.move(tmp_path / "whole.so", library)
    assert "ImportError: fulgurite: loading libfulgurite.so failed" in ran.stderr
    assert "Likely causes" in ran.stderr


def test_library_links_two_libraries_of_torch_and_no_python(package: Path) -> None:
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
    linked = {
        name for name in needed(package / "lib" / "libfulgurite.so") if not name.startswith("ld-")
    }
    assert linked - system == {"libtorch_cpu.so", "libc10.so"}


def test_extension_module_links_no_libtorch_python(package: Path) -> None:
    (extension,) = package.glob("_C.*.so")
    assert not {name for name in needed(extension) if "python" in name}


def test_only_our_own_names_are_exported(package: Path) -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", "-C", package / "lib" / "libfulgurite.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.findall(r"^\w+ T (.*)$", symbols, re.M)
    assert functions
    assert [name for name in functions if not name.startswith("fulgurite::")] == []
