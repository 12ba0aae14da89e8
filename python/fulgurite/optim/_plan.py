"""The lists of a step, gathered once and known in C++ while parameters and states stay the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fulgurite.optim._parts import local, local_grad


class Mode(NamedTuple):
    """What the tensors of one call of an operator share."""

    decoupled: bool
    amsgrad: bool
    maximize: bool
    coded: bool


class Numbers(NamedTuple):
    """What every call of a step shares, tensors all."""

    hyper: Tensor
    multiplier: Tensor | None
    found_inf: Tensor | None
    seed: Tensor | None


class Seen:
    """What the last step saw. Beside the optimizer, whose own attributes a compiled step cannot set
    in torch 2.11.
    """

    def __init__(self) -> None:
        self.total_norm: Tensor | None = None
        self.skipped = torch.zeros((), dtype=torch.float32, device="cpu")


class Call:
    """The lists of one call of an operator."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.params: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []
        self.copies: list[Tensor] = []
        self.groups: list[int] = []
        self.keys: list[int] = []

    def optional(self, key: str, nothing: Tensor) -> list[Tensor]:
        """A state that only some tensors have, with ``nothing`` for the others."""
        found = [state.get(key) for state in self.states]
        if all(tensor is None for tensor in found):
            return []
        return [nothing if tensor is None else tensor for tensor in found]

    def lists(self, nothing: Tensor) -> list[list[Tensor]]:
        """The operator's lists between gradients and steps, without masters."""
        if self.mode.coded:
            names = ("exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes", "exp_avg_sq_scales")
            return [[state[name] for state in self.states] for name in names]
        moments = [[state[name] for state in self.states] for name in ("exp_avg", "exp_avg_sq")]
        amsgrad = [state["max_exp_avg_sq"] for state in self.states] if self.mode.amsgrad else []
        return [*moments, amsgrad, self.copies, self.optional("ema", nothing)]

    @property
    def steps(self) -> list[Tensor]:
        return [state["step"] for state in self.states]

    def run(self, numbers: Numbers) -> None:
        """Call the operator from Python: what a compiler can see, and where there are DTensors, of
        which a plan could not see the parts.
        """
        nothing = torch.empty(0, dtype=torch.float32, device=numbers.hyper.device)
        mode = self.mode
        params, masters, *lists = (
            [local(tensor) for tensor in own]
            for own in (self.params, self.optional("master", nothing), *self.lists(nothing))
        )
        grads = [local_grad(param) for param in self.params]
        options: dict[str, Any] = {
            "grad_multiplier": numbers.multiplier,
            "found_inf": numbers.found_inf,
            "seed": numbers.seed,
            "keys": None if numbers.seed is None else self.keys,
            "decoupled": mode.decoupled,
            "maximize": mode.maximize,
        }
        rest = (self.steps, numbers.hyper, self.groups)
        if mode.coded:
            torch.ops.fulgurite.adamw_8bit_(params, grads, *lists, masters, *rest, **options)
            return
        m, v, vmax, copies, emas = lists
        torch.ops.fulgurite.adamw_(
            params, grads, m, v, vmax, masters, copies, emas, *rest,
            amsgrad=mode.amsgrad, **options,
        )  # fmt: skip


def layout(groups: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What decides into which calls the parameters of the groups go."""
    return [
        (
            len(group),  # an entry that is new is looked at
            len(group["params"]),
            group["decoupled_weight_decay"],
            group["amsgrad"],
            group["maximize"],
            group.get("ema_decay") is None,
        )
        for group in groups
    ]


class _HeldLists:
    """Which tensors stand in some lists, and in a dict of dicts by parameter: objects and what is
    in them (``torch.utils.swap_tensors`` changes that), by their addresses alone. Nothing is kept
    alive, and a weak reference would forbid swapping.
    """

    def __init__(self, lists: list[list[Tensor]], states: dict[Any, Any]) -> None:
        self._addresses = _addresses(lists, states)

    def same(self, lists: list[list[Tensor]], states: dict[Any, Any]) -> bool:
        return _addresses(lists, states) == self._addresses


def _addresses(lists: list[list[Tensor]], states: dict[Any, Any]) -> list[Any]:
    found: list[Any] = [[(id(tensor), tensor._cdata) for tensor in own] for own in lists]
    for key, state in states.items():
        found.append(id(key))
        if not isinstance(state, dict):
            found.append(id(state))
            continue
        for name, value in state.items():
            inside = value._cdata if isinstance(value, Tensor) else None
            found.append((id(name), id(value), inside))
    return found


# Of thousands of parameters these are most of what a step spends in Python.
try:
    from fulgurite._C import HeldLists
except ModuleNotFoundError:
    HeldLists = _HeldLists


class Plan:
    """The calls of a step in C++, and how to see that they are still the optimizer's.

    The C++ side borrows the tensors: it may be used only after ``holds``, or where nothing can have
    happened since.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        calls: list[Call],
        copies: list[Tensor],
        older: Plan | None,
    ) -> None:
        groups = optimizer.param_groups
        self._layout = layout(groups)
        self._held = HeldLists(_lists(groups, copies), optimizer.state)
        self._nothing = torch.empty(0, dtype=torch.float32, device="cpu")
        busy = {id(param) for call in calls for param in call.params}
        self._native = torch.classes.fulgurite.AdamwPlan()
        everyone = [param for group in groups for param in group["params"]]
        self._native.add_idle([param for param in everyone if id(param) not in busy])
        for call in calls:
            masters = call.optional("master", self._nothing)
            lists = [call.params, call.lists(self._nothing), masters, call.steps]
            numbers = [call.groups, call.keys, call.mode.decoupled]
            if call.mode.coded:
                self._native.add_8bit(*lists, *numbers, call.mode.maximize)
            else:
                self._native.add(*lists, *numbers, call.mode.amsgrad, call.mode.maximize)
        if older is not None:
            self._native.take_marks(older._native)

    def holds(self, optimizer: torch.optim.Optimizer, copies: list[Tensor]) -> bool:
        """Groups, parameters, states and who has a gradient are as they were; the gradients of now
        are collected.
        """
        groups = optimizer.param_groups
        return (
            layout(groups) == self._layout
            and self._held.same(_lists(groups, copies), optimizer.state)
            and bool(self._native.collect())
        )

    def grad_stats(self, inv_scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``torch.ops.fulgurite.grad_stats`` of the collected gradients, in order."""
        found_inf, norm_sq, first_bad = self._native.grad_stats(inv_scale)
        return found_inf, norm_sq, first_bad

    def look(self) -> None:
        """Remember the collected gradients."""
        self._native.look()

    def unchanged(self) -> bool:
        """The gradients are those remembered, and nobody has written them."""
        return bool(self._native.unchanged())

    def drop_gradients(self) -> None:
        self._native.drop_gradients()

    def written(self) -> list[int]:
        """Which parameters (counted over all groups) with a whole master may have been written
        since the last step.
        """
        keys: list[int] = self._native.written()
        return keys

    def step(self, numbers: Numbers) -> None:
        self._native.step(*numbers)


def _lists(groups: list[dict[str, Any]], copies: list[Tensor]) -> list[list[Tensor]]:
    return [*(list(group["params"]) for group in groups), copies]
