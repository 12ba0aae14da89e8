"""fulgurite.optim.AdamW as a drop-in for torch.optim.AdamW."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulgurite.optim import AdamW
from fulgurite.optim._states import exact_value


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)).to(dtype)


def groups(net: nn.Sequential) -> list[dict[str, Any]]:
    return [
        {"params": list(net[0].parameters()), "lr": 1e-2, "weight_decay": 0.1},
        {"params": list(net[2].parameters()), "betas": (0.8, 0.95)},
    ]


def backward(net: nn.Sequential, seed: int, scale: float = 1.0) -> Tensor:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    net.zero_grad()
    loss = net(x.to(net[0].weight.dtype)).float().square().sum()
    (loss * scale).backward()
    return loss.detach()


def train(net: nn.Sequential, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        backward(net, step)
        optimizer.step()


def assert_equal_models(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# Sizes of this model are multiples of torch's vector width, so its steps have our bits.


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}, {"eps": 1e-3}])
def test_same_steps_as_torch(options: dict[str, Any]) -> None:
    ours, plain = model(), model()
    train(ours, AdamW(groups(ours), **options), range(20))
    train(plain, torch.optim.AdamW(groups(plain), fused=True, **options), range(20))
    assert_equal_models(ours, plain)


def test_coupled_decay_is_adam() -> None:
    ours, plain = model(), model()
    train(ours, AdamW(groups(ours), decoupled=False), range(20))
    train(plain, torch.optim.Adam(groups(plain), weight_decay=1e-2, fused=True), range(20))
    assert_equal_models(ours, plain)


def test_groups_of_different_kinds_in_one_optimizer() -> None:
    ours, plain = model(), model()
    ours_groups, plain_groups = groups(ours), groups(plain)
    ours_groups[0] |= {"amsgrad": True}
    plain_groups[0] |= {"amsgrad": True}
    ours_groups[1] |= {"maximize": True, "decoupled": False}
    plain_groups[1] |= {"maximize": True, "decoupled_weight_decay": False}
    train(ours, AdamW(ours_groups), range(10))
    train(plain, torch.optim.AdamW(plain_groups, fused=True), range(10))
    assert_equal_models(ours, plain)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    backward(net, 0)
    net[0].weight.grad = None
    before = net[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(net[0].weight, before)
    assert net[0].weight not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()  # nothing has a gradient


def test_closures_hooks_schedulers_and_tensor_rates() -> None:
    ours, plain = model(), model()
    called = []
    results = []
    for net, optimizer in (
        (ours, AdamW(ours.parameters(), lr=torch.tensor(1e-2))),
        (plain, torch.optim.AdamW(plain.parameters(), lr=torch.tensor(1e-2), fused=True)),
    ):
        optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
        optimizer.register_step_post_hook(lambda *_: called.append("post"))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
        for step in range(5):
            results.append(optimizer.step(lambda net=net, step=step: backward(net, step)))
            scheduler.step()
    assert_equal_models(ours, plain)
    assert called == ["pre", "post"] * 10
    assert torch.equal(torch.stack(results[:5]), torch.stack(results[5:]))


def test_clipping_is_clip_grad_norm() -> None:
    ours, plain = model(), model()
    optimizer = AdamW(ours.parameters(), max_grad_norm=0.5)
    reference = torch.optim.AdamW(plain.parameters(), fused=True)
    for step in range(5):
        backward(ours, step)
        backward(plain, step)
        grads = [p.grad.clone() for p in ours.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        reference.step()
        assert optimizer.total_norm.item() == pytest.approx(norm.item(), rel=1e-6)
        for p, grad in zip(ours.parameters(), grads, strict=True):
            assert torch.equal(p.grad, grad)
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_nothing_is_skipped_without_a_scaler() -> None:
    """As in torch, a NaN gradient poisons the parameter, and says so in the norm."""
    net = model()
    optimizer = AdamW(net.parameters(), max_grad_norm=1.0)
    backward(net, 0)
    net[0].bias.grad[3] = math.nan
    optimizer.step()
    assert optimizer.skipped.item() == 0
    assert optimizer.total_norm.isnan()
    assert net[0].bias.isnan().any()


# ---------------------------------------------------------------- masters and other states


def test_masters_keep_what_bfloat16_loses() -> None:
    """Steps far below a bfloat16's resolution add up in both masters, and in neither without."""
    start = torch.full((64,), 1.0)
    found = {}
    for master in (None, "fp32", "split"):
        p = nn.Parameter(start.bfloat16())
        optimizer = AdamW([p], lr=1e-5, weight_decay=0.0, master=master)
        for _ in range(1000):
            p.grad = torch.ones_like(p)
            optimizer.step()
        found[master] = p.detach().clone()
        if master == "split":
            joined = torch.ops.fulgurite.join_master(p.detach(), optimizer.state[p]["master"])
        if master == "fp32":
            wide = optimizer.state[p]["master"]
    assert torch.equal(found[None], start.bfloat16())
    assert torch.equal(found["fp32"], torch.full((64,), 0.99).bfloat16())
    assert torch.equal(joined, wide)


def test_state_dtypes() -> None:
    net = model(torch.bfloat16)
    net[2].double()
    optimizer = AdamW(net.parameters(), state_dtype=torch.bfloat16, master="split", ema_decay=0.9)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    low, wide = optimizer.state[net[0].weight], optimizer.state[net[2].weight]
    assert low["exp_avg"].dtype == low["exp_avg_sq"].dtype == torch.bfloat16
    assert (low["master"].dtype, low["ema"].dtype) == (torch.int16, torch.float32)
    assert wide["exp_avg"].dtype == wide["ema"].dtype == torch.float64
    assert "master" not in wide
    assert low["step"].dtype == torch.float32


def test_averages_follow_the_masters() -> None:
    p = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    optimizer = AdamW([p], lr=0.1, master="fp32", ema_decay=0.75)
    p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[p]
    assert torch.equal(state["ema"], 1.0 + 0.25 * (state["master"] - 1.0))


def test_copies_are_written_in_the_order_of_the_parameters() -> None:
    net = model()
    copies = [torch.zeros_like(p, dtype=torch.bfloat16) for p in net.parameters()]
    optimizer = AdamW(groups(net), copies=copies)
    backward(net, 0)
    net[0].bias.grad = None
    optimizer.step()
    for i, (p, low) in enumerate(zip(net.parameters(), copies, strict=True)):
        assert torch.equal(low, torch.zeros_like(low) if i == 1 else p.bfloat16())


# ---------------------------------------------------------------- checkpoints


def assert_same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    for p, q in zip(
        (p for g in one.param_groups for p in g["params"]),
        (p for g in other.param_groups for p in g["params"]),
        strict=True,
    ):
        assert one.state[p].keys() == other.state[q].keys()
        for key, value in one.state[p].items():
            assert value.dtype == other.state[q][key].dtype, key
            assert torch.equal(value, other.state[q][key]), key
            assert value.data_ptr() != other.state[q][key].data_ptr(), key


@pytest.mark.parametrize("to_ours", [True, False])
def test_checkpoints_to_and_from_torch(to_ours: bool) -> None:
    """Half of the training here, half there: the bits of doing all of it in one place."""
    net, through = model(), model()
    first, second = (torch.optim.AdamW, AdamW) if to_ours else (AdamW, torch.optim.AdamW)

    def make(kind: type, m: nn.Sequential) -> torch.optim.Optimizer:
        return kind(groups(m)) if kind is AdamW else kind(groups(m), fused=True)

    train(net, make(AdamW, net), range(10))
    one = make(first, through)
    train(through, one, range(5))
    two = make(second, through)
    two.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    assert_same_state(one, two)
    for group in two.param_groups:  # a checkpoint of ours has torch's default mode
        group["fused"] = True
    train(through, two, range(5, 10))
    assert_equal_models(net, through)


@pytest.mark.parametrize("master", [None, "fp32", "split"])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_sixteen_bit_checkpoints_are_exact(master: str | None, state_dtype: Any) -> None:
    """torch's load_state_dict would round the float32 moments of bfloat16 parameters."""
    options = {"master": master, "state_dtype": state_dtype, "ema_decay": 0.9}
    net, through = model(torch.bfloat16), model(torch.bfloat16)
    train(net, AdamW(net.parameters(), **options), range(6))
    one = AdamW(through.parameters(), **options)
    train(through, one, range(3))
    two = AdamW(through.parameters(), **options)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert_same_state(one, two)
    train(through, two, range(3, 6))
    assert_equal_models(net, through)


@pytest.mark.parametrize(("saved", "loaded"), [("fp32", "split"), ("split", "fp32")])
def test_one_master_from_the_other(saved: str, loaded: str) -> None:
    net = model(torch.bfloat16)
    one = AdamW(net.parameters(), master=saved)
    train(net, one, range(3))
    values = [exact_value(p, one.state[p]).clone() for p in net.parameters()]
    two = AdamW(net.parameters(), master=loaded)
    two.load_state_dict(one.state_dict())
    for p, value in zip(net.parameters(), values, strict=True):
        assert torch.equal(exact_value(p, two.state[p]), value)


def test_masters_start_from_a_checkpoint_without_them() -> None:
    net = model(torch.bfloat16)
    plain = torch.optim.AdamW(net.parameters())
    train(net, plain, range(3))
    for master in ("fp32", "split"):
        optimizer = AdamW(net.parameters(), master=master)
        optimizer.load_state_dict(plain.state_dict())
        train(net, optimizer, range(3, 4))
        assert all("master" in state for state in optimizer.state.values())


def test_hooks_of_loading_see_what_they_see_in_torch() -> None:
    net = model()
    optimizer = AdamW(net.parameters())
    train(net, optimizer, range(2))
    state = optimizer.state_dict()
    seen = []

    def halve(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        given["state"][0]["exp_avg"] = given["state"][0]["exp_avg"] * 0.5
        return given

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen.append(o.state[net[0].weight]["exp_avg"].clone())
    )
    expected = state["state"][0]["exp_avg"] * 0.5
    optimizer.load_state_dict(copy.deepcopy(state))
    assert torch.equal(seen[0], expected)
    optimizer.load_state_dict(copy.deepcopy(state))
    assert len(seen) == 2


@pytest.mark.parametrize("through", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copying_and_pickling(through: Any) -> None:
    net = model(torch.bfloat16)
    optimizer = AdamW(net.parameters(), master="split", max_grad_norm=0.1, fused_unscale=False)
    train(net, optimizer, range(2))
    other = through(optimizer)
    params = other.param_groups[0]["params"]
    for p, q in zip(net.parameters(), params, strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    other.step()
    for p, q in zip(net.parameters(), params, strict=True):
        assert torch.equal(p, q)
    assert other.total_norm.item() == optimizer.total_norm.item()
    assert not other._step_supports_amp_scaling


def test_parameters_added_later() -> None:
    net = model()
    optimizer = AdamW(net[0].parameters())
    train(net, optimizer, range(2))
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 1e-4})
    train(net, optimizer, range(2, 4))
    assert optimizer.state[net[0].weight]["step"].item() == 4
    assert optimizer.state[net[2].weight]["step"].item() == 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\]"),
        ({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\]"),
        ({"eps": -1e-8}, ValueError, "eps"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"ema_decay": 1.0}, ValueError, "ema_decay"),
        ({"max_grad_norm": -1.0}, ValueError, "max_grad_norm"),
        ({"master": "fp16"}, ValueError, "master"),
        ({"state_dtype": torch.float16}, ValueError, "state_dtype"),
        ({"copies": [torch.zeros(3)]}, ValueError, "copies for 4 parameters, got 1"),
        ({"betas": (0.9,)}, ValueError, r"betas of two numbers, got \(0\.9,\)"),
        ({"betas": 0.9}, ValueError, r"betas of two numbers, got 0\.9"),
        ({"betas": (math.nan, 0.9)}, ValueError, r"betas\[0\]"),
        ({"lr": math.inf}, ValueError, "lr of at least 0 and finite"),
        ({"lr": torch.ones(2)}, ValueError, "lr of one element"),
        ({"weight_decay": math.inf}, ValueError, "weight_decay of at least 0 and finite"),
        ({"max_grad_norm": math.nan}, ValueError, "max_grad_norm"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        AdamW(model().parameters(), **options)


def test_split_masters_of_float16_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"master='split' .*float16.*use master='fp32'"):
        AdamW(model(torch.float16).parameters(), master="split")
    optimizer = AdamW(model().parameters(), master="split")
    with pytest.raises(NotImplementedError, match="float16"):
        optimizer.add_param_group({"params": list(model(torch.float16).parameters())})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = AdamW(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_no_memory_of_the_size_of_the_parameters(state_dtype: str | None) -> None:
    """A step allocates its descriptors only."""
    script = f"""
import resource, torch
from fulgurite.optim import AdamW
p = torch.nn.Parameter(torch.zeros(16 << 20))
p.grad = torch.ones_like(p)
optimizer = AdamW([p], max_grad_norm=1.0, state_dtype={state_dtype!r})
optimizer.step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1024  # KiB
