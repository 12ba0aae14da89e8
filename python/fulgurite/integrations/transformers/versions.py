"""What is taken from transformers by name, and the one error for a release that lacks it."""

from __future__ import annotations

import importlib
from typing import Any

SUPPORTED = "5.23"


def of_transformers(file: str, name: str) -> Any:
    """``transformers.<file>.<name>``, or an ImportError that says what is missing."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "fulgurite.integrations.transformers: expected transformers to be installed:"
            f" pip install transformers=={SUPPORTED}.*"
        ) from error
    try:
        return getattr(importlib.import_module(f"transformers.{file}"), name)
    except (ImportError, AttributeError) as error:
        raise wrong_version(f"without transformers.{file}.{name}") from error


def wrong_version(what: str) -> ImportError:
    """The error for a release that is not the one tested; ``what`` follows its number."""
    import transformers

    return ImportError(
        f"fulgurite.integrations.transformers: expected transformers {SUPPORTED}, got"
        f" {transformers.__version__} {what}"
    )
