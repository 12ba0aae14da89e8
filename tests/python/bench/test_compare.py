"""Two result files side by side: rows are found by what they are, changes judged by spread."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest

from fulgurite.bench.__main__ import main
from fulgurite.bench.compare import BETTER, NOISE, WORSE, read, verdict
from fulgurite.bench.harness import Row, save

Write = Callable[..., Path]


def row(
    ratio: float, spread: float = 0.05, work: str = "float32 forward", shape: str = "S8"
) -> Row:
    return Row(work, shape, "SDPA", 1.0, ratio, ratio, ratio - spread, ratio + spread, 20)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, *rows: Row) -> Path:
        path = tmp_path / name
        save(list(rows), [], path)
        return path

    return written


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """The table with its borders as spaces and its lines joined."""
    out = capsys.readouterr().out
    return " ".join("".join(c if c.isprintable() and c not in "│┃" else " " for c in out).split())


def test_a_file_says_commit_and_date(write: Write) -> None:
    result = read(write("a.json", row(2.0)))
    assert result.date is not None
    assert datetime.fromisoformat(result.date).utcoffset() is not None
    assert result.commit is None or len(result.commit.removesuffix("-dirty")) >= 7
    assert result.machine["threads"] >= 1


def test_a_change_is_more_than_the_spread() -> None:
    assert verdict(row(2.0), row(1.8)) == WORSE
    assert verdict(row(2.0), row(2.2)) == BETTER
    assert verdict(row(2.0), row(1.92)) == NOISE
    assert verdict(row(2.0, 0.3), row(1.8)) == NOISE
    assert verdict(row(2.0), row(2.2, 0.3)) == NOISE
    assert verdict(row(2.0), row(2.0)) == NOISE


def test_rows_are_matched(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order; the same work of another dtype, shape or baseline is another row."""
    old = write("old.json", row(2.0), row(3.0, work="bfloat16 forward"), row(5.0, shape="S16"))
    new = write("new.json", row(3.3, work="bfloat16 forward"), row(1.5), row(7.0, shape="S32"))
    assert main(["compare", str(old), str(new)]) == 0
    text = shown(capsys)
    assert "float32 forward S8 SDPA 2.00 (1.95–2.05) 1.50 (1.45–1.55) -25.0% worse" in text
    assert "bfloat16 forward S8 SDPA 3.00 (2.95–3.05) 3.30 (3.25–3.35) +10.0% better" in text
    assert "float32 forward S16 SDPA 5.00 (4.95–5.05) only old" in text
    assert "float32 forward S32 SDPA 7.00 (6.95–7.05) only new" in text
    assert "2 rows in both: 1 worse, 1 better, 0 within noise; geometric mean -9.2%" in text


def test_exit_status(write: Write) -> None:
    old, worse, same = (write(f"{i}.json", row(ratio)) for i, ratio in enumerate((2.0, 1.5, 2.01)))
    assert main(["compare", str(old), str(worse)]) == 0
    assert main(["compare", str(old), str(worse), "--fail-worse"]) == 1
    assert main(["compare", str(worse), str(old), "--fail-worse"]) == 0
    assert main(["compare", str(old), str(same), "--fail-worse"]) == 0


def test_folders(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("old/moe.json", row(2.0, work="plan"))
    write("old/optim.json", row(2.0, work="step"))
    write("new/moe.json", row(1.0, work="plan"))
    options = [str(tmp_path / "old"), str(tmp_path / "new"), "--fail-worse"]
    assert main(["compare", *options]) == 1
    text = shown(capsys)
    assert "plan S8" in text
    assert "step S8" not in text


def test_another_machine_is_told(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write("old.json", row(2.0)), write("new.json", row(2.0))
    content = json.loads(new.read_text())
    content["machine"]["threads"] = 96
    new.write_text(json.dumps(content))
    main(["compare", str(old), str(new)])
    assert "threads differs: " in shown(capsys)


def test_files_without_commit_date_or_limit_are_read(write: Write) -> None:
    path = write("old.json", row(2.0))
    content = json.loads(path.read_text())
    del content["commit"], content["date"], content["rows"][0]["limit"]
    path.write_text(json.dumps(content))
    assert list(read(path).rows.values()) == [row(2.0)]
    assert str(read(path)).endswith("commit unknown, no date")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*: No such file"),
        ("{", "is no result of fulgurite.bench"),
        ("[]", "is no result of fulgurite.bench"),
        ('{"machine": {}, "rows": [{"work": "plan"}]}', "is no result of fulgurite.bench"),
        (json.dumps({"machine": {}, "rows": [asdict(row(1.0))] * 2}), "has a row twice"),
    ],
)
def test_what_is_no_result_is_refused(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as error:
        main(["compare", str(path), str(path)])
    assert error.value.code == 2
    assert message.split(".*")[-1] in capsys.readouterr().err


def test_a_file_and_a_folder_are_refused(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path), str(write("a.json", row(1.0)))])
    assert "expected two files or two folders" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path), str(tmp_path / "empty")])
    assert "no result of the same name" in capsys.readouterr().err
