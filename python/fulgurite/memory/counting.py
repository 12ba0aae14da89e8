"""How many parameters a model has, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_count(text: str) -> int:
    """A number of parameters: ``7e9``, ``7B``, ``350M``; below 1,000 without a unit: billions."""
    unit = _UNITS.get(text[-1:].upper())
    try:
        count = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        count = -1.0
    if not unit and count < 1000:
        count *= _UNITS["B"]
    if not 1 <= count < 1e18:
        raise ValueError(
            f"fulgurite.memory: expected a number of parameters like 7e9 or 7B, got {text!r}"
        )
    return round(count)


def load_config(path: Path) -> dict[str, Any]:
    """The content of a ``config.json``."""
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"fulgurite.memory: expected a JSON configuration, {path}: {error}"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"fulgurite.memory: expected a JSON object in {path}")
    return config


def tensor_sizes(config: dict[str, Any], model_class: str | None = None) -> list[int]:
    """Elements of every parameter of a transformers model, made without memory.

    Args:
        config: of the model.
        model_class: its class; by default the first of the configuration's architectures.
    """
    name = model_class or next(iter(config.get("architectures") or ()), None)
    if name is None:
        raise ValueError(
            "fulgurite.memory: expected a model class, or architectures in the configuration"
        )
    try:
        import transformers  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError(
            f"fulgurite.memory: counting the parameters of {name} needs transformers; give their"
            " number instead, like 7e9"
        ) from error
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(f"fulgurite.memory: transformers has no class {name}")
    with torch.device("meta"):
        model = kind(kind.config_class.from_dict(config))
    return [p.numel() for p in model.parameters()]
