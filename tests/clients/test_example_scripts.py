"""The scripts of examples/ that need timm or accelerate."""

from __future__ import annotations

import pytest

from example_scripts import check_example


@pytest.mark.parametrize("name", ["timm_vit", "transformers_trainer"])
def test_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_example(name, monkeypatch, capsys)
