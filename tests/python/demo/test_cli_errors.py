"""What the user can put right is told in one line on stderr, with exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fulgurite
from fulgurite.demo import checkpoint
from fulgurite.demo.cli import main

TEXT = bytes(range(32, 127)) * 40
QUICK = ["--quick", "--steps", "1", "--arms", "fulgurite", "--precision", "fp32"]


def error_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the demo, which must fail; returns its one line."""
    try:
        code: object = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("fulgurite.demo: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path


def test_text_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.txt"
    line = error_line(capsys, "--text", path, "--out", tmp_path / "out")
    assert f"cannot read {path}: No such file" in line


def test_text_that_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, "--text", tmp_path, "--out", tmp_path / "out")
    assert f"cannot read {tmp_path}: Is a directory" in line


def test_empty_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.txt"
    path.touch()
    assert f"{path} is empty" in error_line(capsys, "--text", path, "--out", tmp_path / "out")


def test_text_too_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "short.txt"
    path.write_bytes(bytes(1025))
    line = error_line(capsys, "--text", path, "--out", tmp_path / "out")
    assert f"{path} is too short: 1025 bytes, at least 1026 are needed" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--speed"],
        ["--prec", "fp32"],  # no abbreviations: a later option may share the beginning
        ["--precision", "fp8"],
        ["--steps", "0"],
        ["--steps", "many"],
        ["file"],
    ],
    ids=" ".join,
)
def test_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments[0].rstrip("0") in error_line(capsys, *arguments)


def test_output_folder_is_a_file(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(capsys, "--text", text, "--out", text)
    assert f"cannot write to {text}: File exists" in line
    line = error_line(capsys, "--text", text, "--out", text / "below")
    assert "cannot write to" in line
    assert "Not a directory" in line


def test_resume_without_a_checkpoint(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(capsys, "--text", text, "--out", tmp_path, "--resume")
    assert f"no checkpoint in {tmp_path}" in line


def test_resume_with_other_settings_or_text_or_damage(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*QUICK, "--text", str(text), "--out", str(out)]) == 0
    capsys.readouterr()
    resume = ["--out", out, "--resume"]
    assert "with seed 0, not 1" in error_line(capsys, *resume, "--seed", 1)

    text.write_bytes(TEXT + b"more")
    assert "text that the run began with" in error_line(capsys, *resume)
    text.write_bytes(TEXT)

    newest = checkpoint.found(out)[-1]
    weights = newest / "fulgurite.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot read arm fulgurite of {newest}" in error_line(capsys, *resume)
    (newest / "run.json").write_text("{")
    assert f"cannot read {newest / 'run.json'}" in error_line(capsys, *resume)


def test_module_entry_point(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fulgurite.demo", "--text", str(tmp_path / "none")]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(fulgurite.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_checkpoint_that_cannot_be_written(
    text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "partial-checkpoint-000001").write_text("a file in the way")
    assert main([*QUICK, "--text", str(text), "--out", str(tmp_path)]) == 2
    assert f"cannot write {tmp_path / 'checkpoint-000001'}" in capfd.readouterr().err
