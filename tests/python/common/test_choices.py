"""String arguments: every name of a table is served, documented and told by the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fulgurite.nn.functional as F
from docs_pages import page_of
from fulgurite._config import runtime
from fulgurite.amp import LossScaler

CHOICES: dict[str, list[str]] = runtime().choices()
# Whose docstring explains the names, where it is not the operator's own.
EXPLAINED = {"attention_varlen.align": "attention", "moe_balance_loss.score": "moe_route"}
each_choice = pytest.mark.parametrize("choice", CHOICES)


def attention(**kwargs: Any) -> Any:
    return F.attention(*torch.ones(3, 1, 2, 5, 4), **kwargs)


def attention_varlen(**kwargs: Any) -> Any:
    return F.attention_varlen(*torch.ones(3, 5, 2, 4), *torch.tensor([[0, 5]] * 2), **kwargs)


def moe_route(**kwargs: Any) -> Any:
    return F.moe_route(torch.randn(3, 8), 2, n_group=2, topk_group=1, **kwargs)


def moe_balance_loss(**kwargs: Any) -> Any:
    sequences = torch.zeros(3, dtype=torch.int64) if kwargs.get("kind") == "sequence" else None
    ids = torch.zeros(3, 2, dtype=torch.int32)
    return F.moe_balance_loss(torch.randn(3, 8), ids, sequence_ids=sequences, **kwargs)


def moe_plan(**kwargs: Any) -> Any:
    ids = torch.zeros(3, 2, dtype=torch.int32)
    return F.moe_plan(ids, 4, capacity=1, weights=torch.ones(3, 2), **kwargs)


def moe_update_bias_(**kwargs: Any) -> Any:
    F.moe_update_bias_(torch.zeros(4), torch.ones(4, dtype=torch.int64), 0.1, **kwargs)


def moe_experts(**kwargs: Any) -> Any:
    ids, weights = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)
    return F.moe_experts(
        torch.ones(3, 4), ids, weights, torch.ones(2, 12, 4), torch.ones(2, 4, 6), **kwargs
    )


def causal_conv1d(**kwargs: Any) -> Any:
    return F.causal_conv1d(torch.ones(1, 2, 5), torch.ones(2, 3), **kwargs)


def favor_features(**kwargs: Any) -> Any:
    return F.favor_features(torch.ones(1, 2, 3, 4), torch.ones(5, 4), is_query=True, **kwargs)


def update_scale_(**kwargs: Any) -> Any:
    torch.ops.fulgurite.update_scale_(
        torch.ones(()),
        *torch.ones(2, dtype=torch.int32),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(()),
        **kwargs,
    )


CALLS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (attention, attention_varlen, moe_route, moe_balance_loss, moe_plan,
              moe_update_bias_, moe_experts, causal_conv1d, favor_features, update_scale_)
}  # fmt: skip


def test_the_choices_are_known() -> None:
    assert CHOICES["attention.score"] == ["softmax", "relu2", "laplace"]
    assert {choice.split(".")[0] for choice in CHOICES} == CALLS.keys()


@each_choice
def test_every_name_is_served(choice: str) -> None:
    op, argument = choice.split(".")
    for name in CHOICES[choice]:
        CALLS[op](**{argument: name})


@each_choice
def test_other_names_are_refused_with_all_that_are_served(choice: str) -> None:
    op, argument = choice.split(".")
    with pytest.raises(ValueError, match=f"fulgurite::{op}: expected {argument} ") as raised:
        CALLS[op](**{argument: "another"})
    message = str(raised.value)
    assert all(f"'{name}'" in message for name in CHOICES[choice])
    assert message.split("\n")[0].endswith("got 'another'")


@each_choice
def test_every_name_stands_on_the_page_and_in_the_docstring(choice: str) -> None:
    op = choice.split(".")[0]
    page = page_of(op).read_text()
    explained = LossScaler if op == "update_scale_" else getattr(F, EXPLAINED.get(choice, op))
    docstring = explained.__doc__
    for name in CHOICES[choice]:
        assert f'"{name}"' in page, name
        assert f'"{name}"' in docstring, name
