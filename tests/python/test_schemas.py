"""The schemas are serialised into TorchScript and .pt2 archives, so a change of one must be seen.

When a change is meant, write the golden file anew and commit it with the change:

    python tests/python/test_schemas.py
"""

from __future__ import annotations

from pathlib import Path

import torch

import fulgurite  # noqa: F401  (registers the operators)

GOLDEN = Path(__file__).with_name("golden_schemas.txt")


def registered_schemas() -> list[str]:
    schemas = torch._C._jit_get_all_schemas()
    return sorted(str(schema) for schema in schemas if schema.name.startswith("fulgurite::"))


def test_schemas_are_the_golden_ones() -> None:
    assert registered_schemas() == GOLDEN.read_text().splitlines()


if __name__ == "__main__":
    GOLDEN.write_text("".join(f"{schema}\n" for schema in registered_schemas()))
