"""What was put in the place of what, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Applied:
    """What an ``apply`` has replaced in a model.

    Attributes:
        replaced: how many there were of each class (or name of an interface).
    """

    replaced: dict[str, int] = field(default_factory=dict)
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def add(self, name: str, undo: Callable[[], None]) -> None:
        """One more of that name, and what puts it back."""
        self.replaced[name] = self.replaced.get(name, 0) + 1
        self._undo.append(undo)

    def restore(self) -> None:
        """Put back what was there before. A second call does nothing."""
        while self._undo:
            self._undo.pop()()
