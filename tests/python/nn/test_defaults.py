"""Every module and maker of nn under other defaults: dtypes, devices, meta and back, casts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fulgurite.nn as fnn
import fulgurite.nn.functional as F

MODULES: dict[str, Callable[[], nn.Module]] = {
    "Attention": lambda: fnn.Attention(16, 2, qk_norm=True),
    "RMSNorm": lambda: fnn.RMSNorm(8),
    "ShortConvolution": lambda: fnn.ShortConvolution(8, bias=True),
    "Mamba": lambda: fnn.Mamba(8, 4, bias=True),
    "Router": lambda: fnn.Router(8, 4, 2, bias=True, score="sigmoid", selection_bias=True),
    "MoE": lambda: fnn.MoE(
        8, 6, 4, 2, score="sigmoid", bias_update_rate=0.1, expert_bias=True, z_loss_weight=0.1,
        num_shared_experts=1, balance_loss_kind="sequence", balance_loss_weight=0.1, jitter=0.1,
        capacity_factor=1.0, per_sequence=True,
    ),
    "RelativePositionBias": lambda: fnn.RelativePositionBias(2),
    "WindowPositionBias": lambda: fnn.WindowPositionBias((2, 3), 2),
    "ContinuousPositionBias": lambda: fnn.ContinuousPositionBias((2, 3), 2, hidden_dim=8),
}  # fmt: skip

MAKERS: dict[str, Callable[[], Any]] = {
    "alibi_slopes": lambda: fnn.alibi_slopes(6),
    "log_n_scale": lambda: fnn.log_n_scale(20, 8),
    "rotary_table": lambda: fnn.rotary_table(9, 8),
    "rotary_table_2d": lambda: fnn.rotary_table_2d(3, 4, 8),
    "rotary_table_interpolated": lambda: fnn.rotary_table_interpolated(9, 8, 2.0),
    "rotary_table_ntk": lambda: fnn.rotary_table_ntk(9, 8, 2.0),
    "rotary_table_yarn": lambda: fnn.rotary_table_yarn(9, 8, 2.0, 16),
    "tree_depths": lambda: fnn.tree_depths([-1, 0, 0]),
    "tree_mask": lambda: fnn.tree_mask([-1, 0, 0], past=2),
    "shifted_window_mask": lambda: fnn.shifted_window_mask(4, 6, (2, 3), (1, 1)),
    "window_position_index": lambda: fnn.window_position_index((2, 3)),
    "log_spaced_coordinates": lambda: fnn.log_spaced_coordinates((2, 3)),
    "local_mask": lambda: fnn.local_mask(9, 3),
    "strided_mask": lambda: fnn.strided_mask(9, 3),
    "fixed_mask": lambda: fnn.fixed_mask(9, 3, 1),
    "local_layout": lambda: fnn.local_layout(9, 3, 2),
    "strided_layout": lambda: fnn.strided_layout(9, 3, 2),
    "fixed_layout": lambda: fnn.fixed_layout(9, 3, 2, 1),
}

every_module = pytest.mark.parametrize("make", MODULES.values(), ids=list(MODULES))
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)


def test_every_module_and_maker_is_here() -> None:
    """What takes no tensor but makes some."""
    for name in fnn.__all__:
        thing = getattr(fnn, name)
        if inspect.isclass(thing) and issubclass(thing, nn.Module):
            assert name in MODULES
        elif inspect.isfunction(thing) and "device" in inspect.signature(thing).parameters:
            assert name in MAKERS


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tensors(made: Any) -> list[Tensor]:
    return list(made) if isinstance(made, tuple) else [made]


@dtypes
@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_makers_do_not_read_the_default_dtype(make: Callable[[], Any], dtype: torch.dtype) -> None:
    expected = tensors(make())
    with default_dtype(dtype):
        actual = tensors(make())
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_makers_make_on_the_default_device(make: Callable[[], Any]) -> None:
    with torch.device("meta"):
        made = tensors(make())
    assert all(tensor.is_meta for tensor in made)


def run(module: nn.Module) -> list[Tensor]:
    """What the module gives on the CPU, its gradients and its cache or losses too."""
    torch.manual_seed(0)
    of = {"dtype": torch.float32, "device": "cpu"}
    if isinstance(module, fnn.Attention):
        cos, sin = fnn.rotary_table(5, 8, device=torch.device("cpu"))
        x = torch.randn(2, 5, 16, **of)
        with torch.no_grad():
            cache = module.make_cache(2, 6)
            decoded = module.decode(x, *cache, cos, sin)
        results = [module(x, cos, sin), decoded, *cache]
    elif isinstance(module, fnn.Mamba):
        x = torch.randn(2, 5, 8, **of)
        with torch.no_grad():
            cache = module.make_cache(2)
            stepped = module.step(x, *cache)
        results = [module(x), stepped, *cache]
    elif isinstance(module, fnn.ShortConvolution):
        x = torch.randn(2, 5, 8, **of)
        with torch.no_grad():
            inputs = module.make_cache(2)
            stepped = module.step(x, inputs)
        results = [module(x), stepped, inputs]
    elif isinstance(module, fnn.RMSNorm):
        results = [module(torch.randn(3, 8, **of))]
    elif isinstance(module, (fnn.MoE, fnn.Router)):
        x = torch.randn(2, 5, 8, **of)
        y = module(x, torch.ones(2, 5, dtype=torch.bool, device="cpu"))
        results = [*(y if isinstance(y, tuple) else (y,)), fnn.aux_losses(module)]
        module.update_bias()
        results += [module.load, module.dropped, module.selection_bias]
    elif isinstance(module, fnn.RelativePositionBias):
        results = [module(4, 6)]
    else:
        results = [module()]
    total = sum(r.float().square().sum() for r in results if r.requires_grad)
    assert isinstance(total, Tensor)
    total.backward()
    return [r.detach() for r in results]


@every_module
@dtypes
def test_modules_do_not_read_the_defaults_when_they_run(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    module = make()
    expected = run(module)
    again = make()
    again.load_state_dict(module.state_dict())
    if isinstance(again, (fnn.MoE, fnn.Router)):
        again.selection_bias.zero_()
    with default_dtype(dtype), torch.device("meta"):
        actual = run(again)
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@every_module
@dtypes
def test_parameters_have_the_default_dtype(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    """As torch's do; what is no parameter does not."""
    module = make()
    with default_dtype(dtype):
        other = make()
    for name, p in other.named_parameters():
        assert p.dtype == dtype, name
    for name, b in other.named_buffers():
        assert b.dtype == module.get_buffer(name).dtype, name


def test_dropout_draws_on_the_cpu_whatever_the_default_device() -> None:
    x = torch.randn(1, 2, 8, 8, device="cpu")
    torch.manual_seed(0)
    expected = F.attention(x, x, x, dropout_p=0.5)
    torch.manual_seed(0)
    with torch.device("meta"), default_dtype(torch.float64):
        actual = F.attention(x, x, x, dropout_p=0.5)
    assert torch.equal(actual, expected)


# ---------------------------------------------------------------- meta and back


def spoil(module: nn.Module) -> None:
    """As uninitialised memory may be."""
    with torch.no_grad():
        for t in [*module.parameters(), *module.buffers()]:
            t.fill_(77)
        for m in module.modules():
            for name in ("load", "dropped"):
                if hasattr(m, name):
                    getattr(m, name).fill_(77)


@every_module
def test_built_on_meta_and_reset(make: Callable[[], nn.Module]) -> None:
    expected = make()
    with torch.device("meta"):
        module = make()
    assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])
    module.to_empty(device="cpu")
    spoil(module)
    for m in module.modules():
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()
    for name, b in module.named_buffers():
        assert torch.equal(b, expected.get_buffer(name)), name
    for name, p in module.named_parameters():
        assert not (p == 77).any(), name
    if isinstance(module, (fnn.MoE, fnn.Router)):
        assert int(module.load.sum()) == int(module.dropped) == 0
        assert module.aux_loss.device.type == "cpu"
    run(module)


@every_module
def test_a_module_resets_what_is_below_it(make: Callable[[], nn.Module]) -> None:
    module = make()
    spoil(module)
    module.reset_parameters()
    assert all((p != 77).all() for p in module.parameters())
    run(module)


@every_module
@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to("cpu", torch.bfloat16).float(),
    ],
    ids=["bfloat16", "half", "double", "there and back"],
)
def test_casts_leave_what_is_not_a_parameter(
    make: Callable[[], nn.Module], cast: Callable[[nn.Module], nn.Module]
) -> None:
    module, expected = make(), make()
    for m in (module, expected):
        if isinstance(m, (fnn.MoE, fnn.Router)):
            m.selection_bias.copy_(torch.tensor([0.1, 1 / 3, 1e-5, 0.7]))
    cast(module)
    for name, b in module.named_buffers(remove_duplicate=False):
        assert b.dtype == expected.get_buffer(name).dtype, name
        assert torch.equal(b, expected.get_buffer(name)), name
    if isinstance(module, fnn.MoE):
        assert module.selection_bias is module.router.selection_bias
        assert module.load is module.router.load


def test_bfloat16_experts_count_and_balance_in_full() -> None:
    moe = fnn.MoE(8, 6, 4, 2, score="sigmoid", bias_update_rate=1e-3).to(torch.bfloat16)
    for _ in range(20):
        moe(torch.randn(7, 8, dtype=torch.bfloat16))
        moe.update_bias()
    assert moe.selection_bias.dtype == torch.float32
    steps = moe.selection_bias / 1e-3
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_a_call_that_raises_counts_nothing() -> None:
    moe = fnn.MoE(8, 6, 4, 2, z_loss_weight=0.1, capacity_factor=0.5)
    x, mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    for inputs, error, message in (
        ((x.double(),), TypeError, "x of torch.float32, got torch.float64"),
        ((x[..., :7],), RuntimeError, r"x of shape \[\.\.\., 8\], got \[2, 5, 7\]"),
        ((x, mask.t()), RuntimeError, r"token_mask of shape \[2, 5\], got \[5, 2\]"),
        ((x, mask.float()), TypeError, "token_mask of torch.bool, got torch.float32"),
    ):
        with pytest.raises(error, match="MoE: expected " + message):
            moe(*inputs)
    assert int(moe.load.sum()) == int(moe.dropped) == 0
    assert fnn.aux_losses(moe) == 0
    with pytest.raises(RuntimeError, match=r"Router: expected token_mask of shape \[2, 5\]"):
        moe.router(x, mask.t())
    with pytest.raises(ValueError, match=r"fulgurite::moe_experts: .*gated"):
        fnn.MoE(8, 6, 4, 2, activation="swiglu_oai", gated=False)


def test_results_are_no_views() -> None:
    """In-place operations on a view bypass what FSDP hangs on a module's result."""
    moe = fnn.MoE(8, 6, 4, 2)
    for shape in ((5, 8), (2, 5, 8), (2, 0, 8)):
        y = moe(torch.randn(shape))
        assert y.shape == shape
        assert not y._is_view()
    (moe(torch.randn(2, 5, 8)).add_(1.0)).sum().backward()
