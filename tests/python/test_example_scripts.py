"""The scripts of examples/ that need torch and transformers alone."""

from __future__ import annotations

import pytest

from example_scripts import EXAMPLES, check_example


@pytest.mark.parametrize("name", ["float16_masters", "packed_sequences", "transformers_moe"])
def test_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_example(name, monkeypatch, capsys)


def test_losses_that_do_not_agree_end_a_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from before_after import Log, report

    before, after = Log(), Log()
    for loss in (3.0, 2.0):
        before(loss)
        after(loss + 0.1)
    report(before, after, bound=0.2)
    with pytest.raises(SystemExit, match="do not agree"):
        report(before, after, bound=0.05)
