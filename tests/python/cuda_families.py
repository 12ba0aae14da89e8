"""Which operators have kernels of CUDA, and which test files are run on them.

``pytest --backend cuda-on-host`` or ``--backend cuda`` runs these files and no others, of
``test_generated.py`` the cases of these operators. A family is added here, and nowhere else. As a
program it prints the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Family:
    """Names of operators, and test files of this folder."""

    operators: tuple[str, ...]
    files: tuple[str, ...]


FAMILIES = {
    "amp": Family(
        ("grad_stats", "clip_multiplier", "unscale_", "update_scale_"),
        ("amp/test_gradients.py", "amp/test_update_scale.py"),
    ),
    "optim": Family(
        ("adamw_", "adamw_8bit_", "split_master", "join_master"),
        (
            "optim/test_adamw_layouts.py",
            "optim/test_adamw_plan.py",
            "optim/test_masters_follow.py",
            "optim/test_split_master.py",
        ),
    ),
}
OPERATORS = {name for family in FAMILIES.values() for name in family.operators}
FILES = {name for family in FAMILIES.values() for name in family.files}
# Their cases are chosen by operator; test_same_bits.py compares with the CPU.
GENERATED, SAME_BITS = "test_generated.py", "cuda/test_same_bits.py"


def applies(item: pytest.Item, on_cuda: bool) -> bool:
    """Whether a test is to be run on the CPU's kernels, or on those of CUDA."""
    name = item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else ""
    if not on_cuda:
        return name != SAME_BITS
    if name == GENERATED:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return "operator" in parameters and parameters["operator"].name in OPERATORS
    return name in FILES or name == SAME_BITS


if __name__ == "__main__":
    print(*(HERE / name for name in [*sorted(FILES), GENERATED, SAME_BITS]), sep="\n")
