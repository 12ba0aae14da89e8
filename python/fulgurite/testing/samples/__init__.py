"""Sample calls of every operator, by family. Importing this module fills ``OPERATORS``.

A family module has a tuple ``OPERATORS`` of its entries; a new family is one line here.
"""

from __future__ import annotations

from importlib import import_module

from fulgurite.testing.registry import OPERATORS

FAMILIES = (
    "attention",
    "attention_cache",
    "moe",
    "moe_plan",
    "moe_expert_choice",
    "moe_experts",
    "optim",
    "amp",
    "linear",
    "favor",
    "norm",
    "linear_attention",
)

for _family in FAMILIES:
    for _operator in import_module(f"{__name__}.{_family}").OPERATORS:
        OPERATORS[_operator.name] = _operator
