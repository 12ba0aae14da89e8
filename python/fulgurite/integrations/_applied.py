"""What was put in the place of what, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Applied:
    """What an ``apply`` has replaced in a model, or found replaced by an earlier one.

    Copied together with its model it belongs to the copy.

    Attributes:
        replaced: how many there were of each class (or name of an interface).
    """

    replaced: dict[str, int] = field(default_factory=dict)
    # Methods and partials, not closures, which a copy would share.
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def restore(self) -> None:
        """Put back what was released. A second call does nothing."""
        while self._undo:
            self._undo.pop()()
