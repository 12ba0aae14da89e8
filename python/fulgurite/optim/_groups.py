"""Parameter groups: which entries an AdamW group may have, and the numbers that a step reads."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

import torch

from fulgurite._numbers import number, optional_number

OWNER = "fulgurite.optim.AdamW"

# What torch.optim.AdamW keeps in a group beside the numbers. The step is always fused, whatever
# these say. They are torch's own defaults, so that torch's optimizer stays in its default mode when
# it loads a checkpoint of ours; those that came with a checkpoint stay what they were.
TORCH_KEYS: dict[str, Any] = {
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}

_NUMBERS = ("lr", "betas", "eps", "weight_decay")
_OPTIONS = (*_NUMBERS, "amsgrad", "maximize", "decoupled", "decoupled_weight_decay", "ema_decay")

_OF_THE_OPTIMIZER = (
    "master", "state_dtype", "copies", "max_grad_norm", "stochastic_rounding", "fused_unscale",
)  # fmt: skip


def two_betas(betas: Any) -> tuple[Any, Any]:
    """The decay rates of the moments."""
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise ValueError(
            f"fulgurite.optim.AdamW: expected betas of two numbers, got {betas!r}"
        ) from None
    return beta1, beta2


def check_numbers(group: dict[str, Any]) -> None:
    """ValueError or TypeError unless a step can be taken with the numbers of a group."""
    number(OWNER, "lr", group["lr"], at_least=0)
    for i, beta in enumerate(two_betas(group["betas"])):
        number(OWNER, f"betas[{i}]", beta, at_least=0, below=1)
    number(OWNER, "eps", group["eps"], at_least=0)
    number(OWNER, "weight_decay", group["weight_decay"], at_least=0)
    optional_number(OWNER, "ema_decay", group.get("ema_decay"), at_least=0, below=1)


def check_scope(group: dict[str, Any], scope: dict[str, Any]) -> None:
    """ValueError for what only the whole optimizer can be, unless the group says the same:
    wrappers such as ZeroRedundancyOptimizer write the arguments of an optimizer into its groups.
    """
    for key, own in scope.items():
        if key in group and not _says(group[key], own):
            raise ValueError(
                f"fulgurite.optim.AdamW: {key} is an option of the whole optimizer, not of a"
                f" parameter group; the optimizer has {own!r}, the group {group[key]!r}"
            )


def drop_scope(group: dict[str, Any]) -> None:
    """Groups, and so checkpoints, have the entries of torch's, and no others."""
    for key in _OF_THE_OPTIMIZER:
        group.pop(key, None)


def _says(value: Any, own: Any) -> bool:
    if isinstance(value, list | tuple) and isinstance(own, list):  # copies
        return len(value) == len(own) and all(a is b for a, b in zip(value, own, strict=True))
    return value is own or (isinstance(value, str | int | float) and bool(value == own))


def check_names(group: dict[str, Any]) -> None:
    """What a new group says must mean something or be the user's own (``name``, ``initial_lr``)."""
    known = (*_OPTIONS, *TORCH_KEYS)
    for key in group:
        if key in known or not isinstance(key, str):
            continue
        meant = next(iter(get_close_matches(key.lower(), known, 1, 0.8)), key)
        if meant not in key:  # lr_scale is no misspelt lr
            raise ValueError(
                f"fulgurite.optim.AdamW: unknown entry {key!r} of a parameter group; did you mean"
                f" {meant!r}?"
            )
    for key in ("capturable", "differentiable"):
        if group.get(key):
            raise NotImplementedError(f"fulgurite.optim.AdamW: {key} is not supported")


def fill(group: dict[str, Any], own: dict[str, Any], defaults: dict[str, Any]) -> None:
    """What a loaded group lacks: older versions of torch knew fewer entries, and none knows ours.

    How decay works, and the options of the whole optimizer, are what an optimizer is, and not what
    a checkpoint says: torch.optim.AdamW loads a checkpoint of Adam and stays AdamW.
    """
    drop_scope(group)
    for key in (*defaults, "ema_decay"):
        if key in own or key in defaults:
            group.setdefault(key, own.get(key, defaults.get(key)))
    group["decoupled_weight_decay"] = own["decoupled_weight_decay"]
    for key in ("rounding_seed", "rounding_step"):  # of a checkpoint that rounded
        if key not in defaults:
            group.pop(key, None)


Rows = list[list[float]]


def rows(groups: list[dict[str, Any]]) -> Rows:
    """The operator's hyper: lr, beta1, beta2, eps, weight_decay and ema_decay of every group.

    Raises:
        ValueError, TypeError: a number that was set in a group and makes no sense.
    """
    return [_row(group) for group in groups]


def _row(group: dict[str, Any]) -> list[float]:
    beta1, beta2 = two_betas(group["betas"])
    decays = (beta1, beta2, group.get("ema_decay") or 0.0)
    rates = (group["lr"], group["eps"], group["weight_decay"])
    if not torch.compiler.is_compiling() and not _are_usual(decays, rates):
        check_numbers(group)
    lr, eps, weight_decay = rates
    return [float(x) for x in (lr, *decays[:2], eps, weight_decay, decays[2])]


def _are_usual(decays: tuple[Any, ...], rates: tuple[Any, ...]) -> bool:
    """Floats inside their bounds: nearly always, and then a step spends no time on more."""
    return all(type(x) is float and 0.0 <= x < 1.0 for x in decays) and all(
        type(x) is float and 0.0 <= x < math.inf for x in rates
    )
