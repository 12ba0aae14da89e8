"""Scalars and layouts that no operator can compute with are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fulgurite.nn.functional as F

X = torch.ones(1, 2, 3, 4)
LOGITS, IDS, WEIGHTS = torch.randn(3, 4), torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)


def attention(**options: Any) -> Any:
    return F.attention(X, X, X, **options)


def varlen(**options: Any) -> Any:
    x, offsets = torch.ones(3, 2, 4), torch.tensor([0, 3])
    return F.attention_varlen(x, x, x, offsets, offsets, **options)


def decode(**options: Any) -> Any:
    return F.attention_decode(X[:, :, :1], X, X, torch.tensor([3]), **options)


def route(**options: Any) -> Any:
    return F.moe_route(LOGITS, 2, **options)


def balance(**options: Any) -> Any:
    return F.moe_balance_loss(LOGITS, IDS, **options)


def experts(**options: Any) -> Any:
    w_in, w_out = torch.ones(4, 6, 4), torch.ones(4, 4, 3)
    return F.moe_experts(LOGITS, IDS, WEIGHTS, w_in, w_out, activation="swiglu_oai", **options)


def update_bias(rate: float) -> None:
    F.moe_update_bias_(torch.zeros(4), torch.ones(4, dtype=torch.int64), rate)


SCALARS: list[tuple[Callable[..., Any], str]] = [
    *((f, name) for f in (attention, varlen, decode) for name in ("scale", "softcap")),
    (attention, "score_scale"),
    (attention, "dropout_p"),
    (route, "eps"),
    (route, "scale"),
    (balance, "eps"),
    (experts, "alpha"),
    (update_bias, "rate"),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("call", "name"), SCALARS)
def test_scalars_are_finite(call: Callable[..., Any], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"fulgurite::\w+: expected {name} "):
        call(**{name: value})


@pytest.mark.parametrize("requires_grad", [False, True])
def test_errors_name_the_operator_that_was_called(requires_grad: bool) -> None:
    w_in = torch.ones(4, 6, 4, dtype=torch.float16, requires_grad=requires_grad)
    with pytest.raises(TypeError, match="fulgurite::moe_experts: expected w_in of x's dtype"):
        F.moe_experts(LOGITS, IDS, WEIGHTS, w_in, torch.ones(4, 4, 3))


def test_float64_runs_on_the_widest_set_that_serves_it() -> None:
    """Kernels of sets wider than AVX2 leave float64 to it, and give its bits."""
    from fulgurite.testing import backend

    def result(name: str) -> Tensor:
        with backend.using(name):
            out: Tensor = F.attention(X.double(), X.double(), X.double())
            return out

    names = [b.set for b in backend.backends()]
    served = [name for name in names if name in ("baseline", "avx2", "neon")]
    assert torch.equal(result(served[-1]), result(names[-1]))
