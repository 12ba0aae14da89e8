"""The lists of a step, gathered once and kept in C++ while parameters and states stay the same."""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor


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


class Call:
    """The lists of one call of an operator."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.params: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []
        self.copies: list[Tensor] = []
        self.groups: list[int] = []
        self.keys: list[int] = []

    def optional(self, key: str) -> list[Tensor]:
        """A state that only some tensors have, with empty tensors for the others."""
        found = [state.get(key) for state in self.states]
        if found.count(None) == len(found):
            return []
        return [torch.empty(0) if tensor is None else tensor for tensor in found]

    def lists(self) -> list[list[Tensor]]:
        """The operator's lists between gradients and steps, without masters."""
        if self.mode.coded:
            names = ("exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes", "exp_avg_sq_scales")
            return [[state[name] for state in self.states] for name in names]
        moments = [[state[name] for state in self.states] for name in ("exp_avg", "exp_avg_sq")]
        amsgrad = [state["max_exp_avg_sq"] for state in self.states] if self.mode.amsgrad else []
        return [*moments, amsgrad, self.copies, self.optional("ema")]

    @property
    def steps(self) -> list[Tensor]:
        return [state["step"] for state in self.states]

    def run(self, numbers: Numbers) -> None:
        """Call the operator from Python: what a compiler can see."""
        mode, lists, masters = self.mode, self.lists(), self.optional("master")
        grads = [param.grad for param in self.params]
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
            torch.ops.fulgurite.adamw_8bit_(self.params, grads, *lists, masters, *rest, **options)
            return
        m, v, vmax, copies, emas = lists
        torch.ops.fulgurite.adamw_(
            self.params, grads, m, v, vmax, masters, copies, emas, *rest,
            amsgrad=mode.amsgrad, **options,
        )  # fmt: skip


def layout(groups: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What decides into which calls the parameters of the groups go."""
    return [
        (
            len(group["params"]),
            group["decoupled_weight_decay"],
            group["amsgrad"],
            group["maximize"],
            group["ema_decay"] is None,
        )
        for group in groups
    ]


def _same_objects(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _same_values(dicts: list[dict[Any, Any]], values: list[Any]) -> bool:
    return _same_objects([value for own in dicts for value in own.values()], values)


# Of thousands of parameters these are most of what a step spends in Python.
try:
    from fulgurite._C import same_objects, same_values
except ModuleNotFoundError:
    same_objects, same_values = _same_objects, _same_values


class Plan:
    """The calls of a step in C++, and how to see that they are still the optimizer's."""

    def __init__(self, optimizer: torch.optim.Optimizer, calls: list[Call]) -> None:
        groups = optimizer.param_groups
        self.calls = len(calls)
        self._layout = layout(groups)
        self._params = [list(group["params"]) for group in groups]
        self._states = list(optimizer.state.values())
        self._values = [value for state in self._states for value in state.values()]
        busy = {id(param) for call in calls for param in call.params}
        self._native = torch.classes.fulgurite.AdamwPlan()
        everyone = [param for params in self._params for param in params]
        self._native.add_idle([param for param in everyone if id(param) not in busy])
        for call in calls:
            lists = [call.params, call.lists(), call.optional("master"), call.steps]
            numbers = [call.groups, call.keys, call.mode.decoupled]
            if call.mode.coded:
                self._native.add_8bit(*lists, *numbers, call.mode.maximize)
            else:
                self._native.add(*lists, *numbers, call.mode.amsgrad, call.mode.maximize)

    def holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Groups, parameters, states and who has a gradient are as they were; the gradients of now
        are collected.
        """
        groups, states = optimizer.param_groups, optimizer.state
        return (
            layout(groups) == self._layout
            and all(
                same_objects(group["params"], params)
                for group, params in zip(groups, self._params, strict=True)
            )
            and same_objects(list(states.values()), self._states)
            and same_values(self._states, self._values)
            and self.collect()
        )

    def collect(self) -> bool:
        """Read the gradients; False if who has one has changed."""
        return bool(self._native.collect())

    def grad_stats(self, inv_scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``torch.ops.fulgurite.grad_stats`` of the collected gradients, call after call."""
        found_inf, norm_sq, first_bad = self._native.grad_stats(inv_scale)
        return found_inf, norm_sq, first_bad

    def step(self, numbers: Numbers) -> None:
        self._native.step(*numbers)
