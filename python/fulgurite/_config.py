"""What was built, what runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fulgurite._runtime import Runtime


@functools.cache
def runtime() -> Runtime:
    """The library's facts and switches."""
    return Runtime()


def cuda_targets() -> list[str]:
    """What kernels of CUDA are compiled for, ``["sm_80", …]``; empty where there are none."""
    rows = runtime().kernel_table()
    return next((row["variants"] for row in rows if row["device"] == "cuda"), [])


def show_config() -> str:
    """Build, instruction set and kernels, as text.

    Example:
        >>> import fulgurite
        >>> print(fulgurite.show_config().splitlines()[0])  # doctest: +ELLIPSIS
        fulgurite ... built with torch ...
    """
    c = runtime()
    lines = [
        f"fulgurite {c.version()} built with torch {c.torch_version()} by {c.compiler()}, "
        f"running with torch {torch.__version__}",
        f"instruction set: {c.get_isa()} (this machine has {', '.join(c.available_isas())}; "
        "FULGURITE_ISA overrides)",
        f"CUDA: {' '.join(cuda_targets()) or 'not built'}",
        "kernels:",
    ]
    for kernel in c.kernel_table():
        lines.append(
            f"  {kernel['name']}: {kernel['active']} (compiled for {', '.join(kernel['variants'])})"
        )
    return "\n".join(lines)


def explain(function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """Call ``function(*args, **kwargs)`` and say which kernels ran for it.

    Args:
        function: an operator's name, an operator, a module or any callable that uses them.

    Returns:
        One dict for each kernel that ran, in the order of the kernel table: ``kernel`` (name),
        ``isa`` (the instruction set whose variant ran, or ``cuda``), ``calls``, ``tasks``
        (independent pieces of work) and ``threads`` (that the last call was spread over); for
        kernels that work in tiles of queries by keys also ``tile`` (rows and columns) and
        ``skipped`` (the share of tiles that no query keeps), else None. Calls made elsewhere at
        the same time are counted.

    Example:
        >>> import torch, fulgurite
        >>> q = torch.randn(1, 2, 8, 16)
        >>> [row["kernel"] for row in fulgurite.explain("attention", q, q, q)]
        ['attention_pack', 'attention_forward']
    """
    c = runtime()
    run = getattr(torch.ops.fulgurite, function) if isinstance(function, str) else function
    before = {(row["device"], row["name"]): row for row in c.kernel_table()}
    run(*args, **kwargs)
    ran = []
    for row in c.kernel_table():
        old = before[row["device"], row["name"]]
        calls = row["calls"] - old["calls"]
        if not calls:
            continue
        tiles = row["tiles"] - old["tiles"]
        skipped = row["tiles_skipped"] - old["tiles_skipped"]
        ran.append(
            {
                "kernel": row["name"],
                "isa": row["ran"],
                "calls": calls,
                "tasks": row["tasks"] - old["tasks"],
                "threads": row["threads"],
                "tile": row["tile"] if tiles else None,
                "skipped": skipped / tiles if tiles else None,
            }
        )
    return ran
