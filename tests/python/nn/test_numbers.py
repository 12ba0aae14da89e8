"""Numbers that are none, or make no sense, are refused where they are given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fulgurite.nn as fn
from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW

NAN, INF = math.nan, math.inf


def made(function: Callable[..., Any], **sound: Any) -> Callable[..., Any]:
    """The function with sound options, one of which a case replaces."""

    def call(**options: Any) -> Any:
        return function(**{**sound, **options})

    call.__name__ = function.__name__
    return call


def adamw(**options: Any) -> AdamW:
    return AdamW([nn.Parameter(torch.ones(2))], **options)


ATTENTION = made(fn.Attention, dim=16, num_heads=4)
MOE = made(fn.MoE, dim=8, hidden_dim=4, num_experts=4, top_k=2)
OAI = made(MOE, activation="swiglu_oai")
ROUTER = made(fn.Router, dim=8, num_experts=4, top_k=2)
MAMBA = made(fn.Mamba, dim=8)
SCALER = made(LossScaler, device="cpu")
TABLE = made(fn.rotary_table, length=3, dim=4)
INTERPOLATED = made(fn.rotary_table_interpolated, length=3, dim=4, factor=2.0)
NTK = made(fn.rotary_table_ntk, length=3, dim=4, factor=2.0)
YARN = made(fn.rotary_table_yarn, length=3, dim=4, factor=2.0, trained_length=64)
GRID = made(fn.rotary_table_2d, height=2, width=2, dim=4)
BUCKETS = made(fn.relative_position_bucket, relative_position=torch.arange(3))
WINDOW_MASK = made(fn.shifted_window_mask, height=4, width=4, window_size=(2, 2), shift=(1, 1))

INTEGERS: list[tuple[Callable[..., Any], str, int]] = [  # the first that is too small
    *((ATTENTION, name, 0) for name in ("dim", "num_heads", "num_kv_heads", "head_dim")),
    (ATTENTION, "window", -2),
    *((MOE, name, 0) for name in ("dim", "hidden_dim", "num_experts", "top_k")),
    (MOE, "num_shared_experts", -1),
    *((ROUTER, name, 0) for name in ("dim", "num_experts", "top_k", "num_groups", "top_groups")),
    (ROUTER, "capacity", -1),
    *((MAMBA, name, 0) for name in ("dim", "state_size", "width", "channels", "dt_rank")),
    *((made(fn.ShortConvolution, channels=4), name, 0) for name in ("channels", "width")),
    *((SCALER, name, 0) for name in ("growth_interval", "hysteresis")),
    *((table, "length", -1) for table in (TABLE, INTERPOLATED, NTK, YARN)),
    *((table, "dim", 0) for table in (TABLE, INTERPOLATED, NTK, YARN, GRID)),
    *((GRID, name, -1) for name in ("height", "width")),
    (YARN, "trained_length", 0),
    (fn.alibi_slopes, "num_heads", 0),
    *((made(fn.log_n_scale, length=2, trained_length=4), name, low)
      for name, low in (("length", -1), ("trained_length", 1), ("start", -1))),
    (BUCKETS, "num_buckets", 1),
    (BUCKETS, "max_distance", 0),
    (fn.RelativePositionBias, "num_heads", 0),
    (made(fn.RelativePositionBias(2).forward, query_length=2, key_length=3), "query_length", -1),
    (made(fn.RelativePositionBias(2).forward, query_length=2, key_length=3), "key_length", -1),
    (made(fn.WindowPositionBias, window_size=(2, 2)), "num_heads", 0),
    (made(fn.ContinuousPositionBias, window_size=(2, 2), num_heads=2), "num_heads", 0),
    (made(fn.ContinuousPositionBias, window_size=(2, 2), num_heads=2), "hidden_dim", 0),
    (WINDOW_MASK, "height", -1),
    (made(fn.local_mask, length=4, stride=2), "length", -1),
    (made(fn.strided_mask, length=4, stride=2), "stride", 0),
    (made(fn.local_layout, length=4, stride=2, block_size=2), "block_size", 0),
    *((made(fn.fixed_mask, length=4, stride=2, width=1), name, low)
      for name, low in (("width", -1), ("num_heads", 0), ("num_slots", 0))),
    (made(fn.tree_mask, parents=[-1, 0]), "past", -1),
]  # fmt: skip

FLOATS: list[tuple[Callable[..., Any], str, list[float]]] = [
    (ATTENTION, "scale", []),
    (made(ATTENTION, qk_norm=True), "eps", [-1.0]),
    (made(fn.RMSNorm, normalized_shape=8), "eps", [-1.0]),
    (OAI, "alpha", []),
    (OAI, "limit", [-1.0]),
    (MOE, "input_jitter", [-0.1, 1.0]),
    *((owner, name, [-1.0]) for owner in (MOE, ROUTER) for name in (
        "eps", "jitter", "bias_update_rate", "balance_loss_weight", "z_loss_weight",
        "capacity_factor")),
    (ROUTER, "routed_scale", []),
    (MAMBA, "dt_min", [0.0, -1.0]),
    (MAMBA, "dt_max", [1e-4]),
    (SCALER, "init_scale", [0.0, -1.0, 1e39, 1e-60]),
    (SCALER, "growth_factor", [1.0, 0.5, -2.0]),
    (SCALER, "backoff_factor", [1.0, 0.0, -0.5]),
    (SCALER, "min_scale", [-1.0]),
    *((table, "base", [0.0, -1.0]) for table in (TABLE, INTERPOLATED, NTK, GRID)),
    *((table, "factor", [0.0, 0.5]) for table in (INTERPOLATED, NTK, YARN)),
    (YARN, "base", [1.0]),
    (YARN, "fast", [1.0, 0.5]),
    (YARN, "slow", [0.0]),
    (YARN, "attention_factor", [0.0]),
    *((adamw, name, [-1e-3]) for name in ("lr", "eps", "weight_decay")),
    (adamw, "ema_decay", [-0.1, 1.0]),
]  # fmt: skip


def case_id(value: Any) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("call", "name", "low"), INTEGERS, ids=case_id)
def test_integers(call: Callable[..., Any], name: str, low: int) -> None:
    with pytest.raises(ValueError, match=rf": expected (an even, positive |.*){name}.* got {low}"):
        call(**{name: low})
    for wrong in (2.5, "2", NAN, 2j, torch.tensor(2.5)):
        with pytest.raises(TypeError, match=rf": expected an integer {name}, got "):
            call(**{name: wrong})


@pytest.mark.parametrize(("call", "name", "wrong"), FLOATS, ids=case_id)
def test_floats(call: Callable[..., Any], name: str, wrong: list[float]) -> None:
    for value in (NAN, INF, -INF, *wrong):
        with pytest.raises(ValueError, match=rf": expected {name} .* got {re.escape(str(value))}"):
            call(**{name: value})
    for value in ("1", b"1", 1j, [1.0]):
        with pytest.raises(TypeError, match=rf": expected a number {name}, got "):
            call(**{name: value})
    with pytest.raises(ValueError, match=rf": expected {name} of one element, got shape \[2\]"):
        call(**{name: torch.ones(2)})


@pytest.mark.parametrize("wrong", [(2, 0), (2.5, 2), (2,), 2, ("2", 2)])
def test_windows(wrong: Any) -> None:
    image = torch.ones(1, 4, 4, 1)
    for call in (
        lambda: fn.window_partition(image, wrong),
        lambda: fn.window_position_index(wrong),
        lambda: fn.log_spaced_coordinates((2, 2), wrong),
        lambda: fn.WindowPositionBias(wrong, 2),
        lambda: fn.ContinuousPositionBias((2, 2), 2, wrong),
        lambda: WINDOW_MASK(window_size=wrong),
    ):
        with pytest.raises((ValueError, TypeError), match=r": expected .*window_size"):
            call()


def test_what_torch_takes_for_a_number() -> None:
    def same(call: Callable[..., Any], **options: Any) -> None:
        assert str(call(**options)) == str(call(**{name: int(x) for name, x in options.items()}))

    for four in (np.int64(4), torch.tensor(4), torch.tensor([4])):
        same(ATTENTION, num_heads=four)
        same(MOE, hidden_dim=four, num_experts=four)
        assert torch.equal(fn.alibi_slopes(four), fn.alibi_slopes(4))  # type: ignore[arg-type]
    same(MOE, top_k=True)
    assert fn.RMSNorm(8, eps=np.float32(0.5)).eps == 0.5  # type: ignore[arg-type]
    assert ATTENTION(scale=torch.tensor(0.5)).scale == 0.5
    assert isinstance(ATTENTION(scale=1).scale, float)
    for two in (np.float64(2), torch.tensor(2.0), 2):
        assert torch.equal(YARN(factor=two)[0], YARN(factor=2.0)[0])
        assert SCALER(init_scale=two).get_scale() == 2.0
    assert adamw(lr=torch.tensor(0.5)).param_groups[0]["lr"].item() == 0.5  # stays a tensor


def test_scripts_take_numbers_of_every_kind() -> None:
    attention = torch.jit.script(ATTENTION(scale=1, num_heads=np.int64(4)))
    assert attention(torch.randn(1, 3, 16)).shape == (1, 3, 16)


def test_symbolic_lengths_stay_symbolic() -> None:
    compiled = torch.compile(
        lambda x: fn.rotary_table(x.size(0), 4)[0] * fn.log_n_scale(x.size(0), 8),
        backend="eager", dynamic=True, fullgraph=True,
    )  # fmt: skip
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (3, 7, 9):
            x = torch.ones(length)
            expected = fn.rotary_table(length, 4)[0] * fn.log_n_scale(length, 8)
            assert torch.equal(compiled(x), expected)


def test_a_norm_has_a_weight() -> None:
    with pytest.raises(ValueError, match="RMSNorm: expected elementwise_affine=True, got False"):
        fn.RMSNorm(8, elementwise_affine=False)


def test_groups_hold_the_chosen_experts() -> None:
    with pytest.raises(ValueError, match=r"Router: expected .* top_groups of them to hold 2"):
        ROUTER(num_groups=4, top_groups=1)


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:.*quantized tensor")
@pytest.mark.parametrize(
    "module", [fn.Attention(8, 2), fn.MoE(8, 4, 4, 2), fn.Router(8, 4, 2), fn.RMSNorm(8),
               fn.Mamba(8), fn.ShortConvolution(8)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_modules_ask_for_dense_floating_point_inputs(module: nn.Module) -> None:
    name = type(module).__name__
    rows = torch.randn(2, 3, 8)
    jagged = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)], layout=torch.jagged)
    for x in (nested(), jagged):
        with pytest.raises(RuntimeError, match=f"{name}: expected x dense, got a nested tensor"):
            module(x)
    for x in (rows.to_sparse(), rows.to_mkldnn(), rows.to_sparse_csr()):
        with pytest.raises(RuntimeError, match=f"{name}: expected x of layout strided, got torch"):
            module(x)
    quantized = torch.quantize_per_tensor(rows, 0.1, 0, torch.qint8)
    for x in (rows.to(torch.complex64), rows.int(), quantized):
        with pytest.raises(TypeError, match=f"{name}: expected x of a floating-point dtype, got"):
            module(x)
