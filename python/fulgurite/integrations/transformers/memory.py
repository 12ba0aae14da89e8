"""What parts of a model were before ``apply``: kept with its modules, so that copies carry it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

MEMORY = "_before_fulgurite"


@dataclass(eq=False)
class Change:
    """An attribute of a module or a config that ``apply`` gave another value."""

    owner: Any
    attribute: str
    value: Any  # as released
    undone: bool = False

    def undo(self) -> None:
        if not self.undone:
            self.undone = True
            setattr(self.owner, self.attribute, self.value)


def remember(model: nn.Module, before: Iterable[tuple[Any, str, Any]]) -> list[Change]:
    """The changes of values (owner, attribute, value before), an earlier call's among them.

    A later ``apply`` shares the changes of an earlier one: each of the two leads back to what was
    released.
    """
    known = {
        (id(change.owner), change.attribute): change
        for module in model.modules()
        for change in changes_in(module)
    }
    changes: list[Change] = []
    for owner, attribute, value in before:
        change = known.get((id(owner), attribute))
        if change is None and getattr(owner, attribute) is not value:
            change = Change(owner, attribute, value)
        if change is not None:
            changes.append(change)
    for module in model.modules():
        kept = changes_in(module)
        kept += [c for c in changes if concerns(c, module) and c not in kept]
        if kept:
            vars(module)[MEMORY] = kept
    return changes


def forget(model: nn.Module) -> None:
    """Leave no trace of changes that were undone."""
    for module in model.modules():
        kept = changes_in(module)
        if kept:
            vars(module)[MEMORY] = kept
        else:
            vars(module).pop(MEMORY, None)


def changes_in(module: nn.Module) -> list[Change]:
    return [change for change in vars(module).get(MEMORY, []) if not change.undone]


def concerns(change: Change, module: nn.Module) -> bool:
    """Whether a module keeps a change: its own, and those of configs, which modules share."""
    if isinstance(change.owner, nn.Module):
        return change.owner is module
    return hasattr(module, "config")
