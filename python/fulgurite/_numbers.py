"""Numbers that are given as options, checked where they are given.

An error names who was called, what was expected and what was given: TypeError for what is no
number, ValueError for one that makes no sense. What torch takes for a number is one here, too:
bools, NumPy's, tensors of one element, symbolic sizes.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor


def integer(
    owner: str, name: str, value: Any, low: int | None = None, high: int | None = None
) -> int:
    """The option as an int, not below ``low`` and not above ``high`` where they are given.

    >>> integer("Attention", "num_heads", 2.5, 1)
    Traceback (most recent call last):
    TypeError: Attention: expected an integer num_heads, got 2.5
    """
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, int | torch.SymInt):
        _check_one_element(owner, name, value)
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{owner}: expected an integer {name}, got {value!r}") from None
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{owner}: expected {name} {bounds}, got {value}")
    whole: int = value
    return whole


def two_integers(owner: str, name: str, value: Any, low: int) -> tuple[int, int]:
    """The option as two ints of at least ``low``: a window, a grid."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise ValueError(f"{owner}: expected {name} of two integers, got {value!r}") from None
    return integer(owner, f"{name}[0]", first, low), integer(owner, f"{name}[1]", second, low)


def number(
    owner: str,
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> float:
    """The option as a float inside its bounds, which NaN never is; finite unless said otherwise.

    >>> number("RMSNorm", "eps", -1, at_least=0)
    Traceback (most recent call last):
    ValueError: RMSNorm: expected eps of at least 0 and finite, got -1
    """
    as_float = _float(owner, name, value)
    fits = as_float == as_float and (not finite or -math.inf < as_float < math.inf)
    fits = fits and (at_least is None or as_float >= at_least)
    fits = fits and (above is None or as_float > above)
    fits = fits and (below is None or as_float < below)
    if not fits:
        bounds = _bounds(at_least, above, below, finite)
        raise ValueError(f"{owner}: expected {name} {bounds}, got {value}")
    return as_float


def optional_number(owner: str, name: str, value: Any, **bounds: Any) -> float | None:
    """None, or as :func:`number`."""
    return None if value is None else number(owner, name, value, **bounds)


def _float(owner: str, name: str, value: Any) -> float:
    if isinstance(value, float | torch.SymFloat):
        real: float = value  # type: ignore[assignment]
        return real
    _check_one_element(owner, name, value)
    if not isinstance(value, str | bytes | bytearray):  # which float() would read
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    raise TypeError(f"{owner}: expected a number {name}, got {value!r}")


def _check_one_element(owner: str, name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{owner}: expected {name} of one element, got shape {list(value.shape)}")


def _bounds(at_least: float | None, above: float | None, below: float | None, finite: bool) -> str:
    low = at_least if above is None else above
    if low is not None and below is not None:
        return f"in {'[' if above is None else '('}{low}, {below})"
    named = {"of at least": at_least, "above": above, "below": below}
    texts = [f"{words} {bound}" for words, bound in named.items() if bound is not None]
    return " and ".join(texts + ["finite"] * finite)
