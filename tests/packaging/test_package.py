"""What a wheel holds and puts where, and that it works away from the source tree."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from fulgurite._load import choose

MAJOR, MINOR = map(int, torch.__version__.split(".")[:2])
LIBRARY = f"lib/torch{MAJOR}.{MINOR}/libfulgurite.so"
HERE = Path(__file__).parent
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


@pytest.fixture
def without(package: Path, tmp_path: Path):
    """without(name): a file of the package, out of the way for a test."""
    hidden = []

    def hide(name: str) -> None:
        hidden.append((package / name, tmp_path / Path(name).name))
        shutil.move(*hidden[-1])

    yield hide
    for there, here in hidden:
        shutil.move(here, there)


def test_wheel_is_for_every_python_and_names_how_old_a_system_may_be(wheel: Path) -> None:
    """The oldest glibc is read from the libraries: of what g++ 12 on Debian 12 links, 2.32."""
    found = re.fullmatch(r"fulgurite-[\d.]+-py3-none-manylinux_2_(\d+)_\w+\.whl", wheel.name)
    assert found is not None, wheel.name
    used: set[int] = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                used |= set(map(int, re.findall(rb"GLIBC_2\.(\d+)", archive.read(name))))
    assert max(used) <= int(found[1])


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "fulgurite/__init__.py",
        "fulgurite/_build_info.py",
        "fulgurite/_C.abi3.so",
        "fulgurite/py.typed",
        f"fulgurite/{LIBRARY}",
        "fulgurite/include/fulgurite/attention.h",
        "fulgurite/share/cmake/fulgurite/fulguriteConfig.cmake",
    ):
        assert wanted in names
    libraries = {name for name in names if re.search(r"\.so\b", name)}
    assert libraries == {"fulgurite/_C.abi3.so", f"fulgurite/{LIBRARY}"}
    tops = {name.split("/")[0] for name in names}
    assert {re.sub(r"-.*(?=\.dist-info)", "", top) for top in tops} == {
        "fulgurite",
        "fulgurite.dist-info",
    }


def test_wheel_asks_for_the_torch_that_it_holds_a_library_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert f"torch<{MAJOR}.{MINOR + 1},>={MAJOR}.{MINOR}" in metadata.get_all("Requires-Dist", [])
    assert metadata["License-Expression"] == "BSD-3-Clause"


def test_first_example_of_the_readme(run, package: Path) -> None:
    ran = run(program=HERE / "first_example.py")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(package))
    assert f"built with torch {MAJOR}.{MINOR}." in ran.stdout


def test_operators_need_no_extension_module(run, without) -> None:
    without("_C.abi3.so")
    ran = run(USE + "assert fulgurite._C is None; print(fulgurite.show_config())")
    assert ran.returncode == 0, ran.stderr
    assert "instruction set:" in ran.stdout


def test_optimizer_needs_no_extension_module(run, without) -> None:
    without("_C.abi3.so")
    ran = run(program=HERE / "first_example.py")
    assert ran.returncode == 0, ran.stderr


def test_extension_module_is_of_the_limited_api(run, package: Path) -> None:
    assert [path.name for path in package.glob("_C*")] == ["_C.abi3.so"]
    ran = run("import fulgurite; print(fulgurite._C.__file__)")
    assert ran.stdout.strip() == str(package / "_C.abi3.so"), ran.stderr


@pytest.mark.parametrize(
    "version", [f"{MAJOR}.{MINOR - 1}.1", f"{MAJOR}.{MINOR + 1}.0", f"{MAJOR + 1}.{MINOR}.0"]
)
def test_another_minor_version_of_torch_is_refused(run, version: str) -> None:
    ran = run(f"import torch; torch.__version__ = '{version}'; import fulgurite")
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"ImportError: fulgurite was built for torch {MAJOR}.{MINOR} and cannot run with torch "
        f"{version}. Install one of these versions"
    )
    assert "pip install --no-build-isolation" in last


def test_another_patch_version_of_torch_is_accepted(run) -> None:
    ran = run(f"import torch; torch.__version__ = '{MAJOR}.{MINOR}.9+cu999'; import fulgurite")
    assert ran.returncode == 0, ran.stderr


def test_the_library_of_the_running_torch_is_chosen(tmp_path: Path) -> None:
    for held in ("2.9", "2.14", "2.13", "3.0"):
        (tmp_path / f"torch{held}").mkdir()
        (tmp_path / f"torch{held}" / "libfulgurite.so").touch()
    (tmp_path / "torch2.15").mkdir()  # without a library in it
    for running, held in (
        ("2.13.0+cpu", "2.13"),
        ("2.14.1", "2.14"),
        ("2.9.0a0+git1", "2.9"),
        ("3.0.0", "3.0"),
    ):
        assert choose(tmp_path, running) == tmp_path / f"torch{held}" / "libfulgurite.so"
    with pytest.raises(
        ImportError, match=r"for torch 2\.9, 2\.13, 2\.14 and 3\.0 and cannot run with torch 2\.15"
    ):
        choose(tmp_path, "2.15.0")


def test_missing_library_says_how_to_build_it(run, without) -> None:
    without(LIBRARY)
    ran = run("import fulgurite")
    assert "ImportError: fulgurite: libfulgurite.so is not beside the package" in ran.stderr


def test_broken_library_lists_likely_causes(run, without, package: Path) -> None:
    without(LIBRARY)
    (package / LIBRARY).write_bytes(b"not a shared library")
    ran = run("import fulgurite")
    assert f"ImportError: fulgurite: loading torch{MAJOR}.{MINOR}/libfulgurite.so" in ran.stderr
    assert "Likely causes" in ran.stderr


def test_library_links_two_libraries_of_torch_and_no_python(package: Path) -> None:
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
    linked = {name for name in needed(package / LIBRARY) if not name.startswith("ld-")}
    assert linked - system == {"libtorch_cpu.so", "libc10.so"}


def test_extension_module_links_nothing_of_torch_and_python(package: Path) -> None:
    assert not {n for n in needed(package / "_C.abi3.so") if re.search("python|torch|c10|fulg", n)}


def test_libraries_name_no_folder_of_the_machine_that_built_them(package: Path) -> None:
    for library in (package / LIBRARY, package / "_C.abi3.so"):
        dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True)
        paths = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.+)\]", dynamic.stdout)
        assert [path for path in paths if not path.startswith("$ORIGIN/")] == []


def test_only_our_own_names_are_exported(package: Path) -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", "-C", package / LIBRARY],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.findall(r"^\w+ T (.*)$", symbols, re.M)
    assert functions
    assert [name for name in functions if not name.startswith("fulgurite::")] == []
