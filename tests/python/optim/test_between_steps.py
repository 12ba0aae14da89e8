"""What torch.optim.AdamW allows between steps: an optimizer owns no more than its own state."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW

KINDS: list[dict[str, Any]] = [
    {}, {"master": "fp32", "ema_decay": 0.9}, {"master": "split", "max_grad_norm": 1.0},
    {"state_dtype": "8bit"},
]  # fmt: skip


def trained(dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[nn.Linear, AdamW]:
    torch.manual_seed(0)
    net = nn.Linear(64, 80, dtype=dtype)
    optimizer = AdamW(net.parameters(), **options)
    for _ in range(2):
        train(net, optimizer)
    optimizer.zero_grad()
    return net, optimizer


def train(net: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(2, 64, dtype=net.weight.dtype)).float().square().sum().backward()
    optimizer.step()


@pytest.fixture
def swapping() -> Any:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("options", KINDS)
def test_modules_that_swap_their_parameters(options: dict[str, Any]) -> None:
    net, optimizer = trained(**options)
    net.load_state_dict({key: value.clone() for key, value in net.state_dict().items()})
    train(net, optimizer)
    optimizer.zero_grad()
    net.float()
    if "state_dtype" in options:  # blocks of codes go with memory, which is another one now
        optimizer.state.clear()
    train(net, optimizer)
    assert net.weight.dtype == torch.float32
    assert "master" not in optimizer.state[net.weight]
    net.half() if options.get("master") != "split" else net.bfloat16()
    optimizer.zero_grad()
    train(net, optimizer)
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("options", KINDS)
def test_nobody_else_holds_parameters_and_states(options: dict[str, Any]) -> None:
    net, optimizer = trained(**options)
    for p in net.parameters():
        assert p._use_count() <= 2  # the object, and where it is a leaf its accumulator
        for tensor in optimizer.state[p].values():
            assert tensor._use_count() == 1
            assert not weakref.getweakrefs(tensor)
            torch.utils.swap_tensors(tensor, tensor.clone())
    train(net, optimizer)


@pytest.mark.parametrize("options", KINDS)
def test_memory_is_given_back_at_once(options: dict[str, Any]) -> None:
    net, optimizer = trained(**options)
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    alive = [weakref.ref(t) for t in tensors]
    del tensors
    optimizer.state.clear()
    assert all(ref() is None for ref in alive)
    train(net, optimizer)
    dropped = weakref.ref(net.bias)
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop())
    optimizer.zero_grad()
    net.bias = None
    gc.collect()
    assert dropped() is None
    train(net, optimizer)


def test_states_that_move() -> None:
    """Off to other memory and back, as offloading does."""
    net, optimizer = trained(master="fp32")
    reference_net = copy.deepcopy(net)
    reference = AdamW(reference_net.parameters(), master="fp32")
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    parked = {}
    for p, state in optimizer.state.items():
        parked[p] = {key: tensor.clone() for key, tensor in state.items()}
        for key in state:
            state[key] = torch.empty(0)
    for p, state in optimizer.state.items():
        for key in state:
            state[key] = parked[p][key]
    for _ in range(2):
        train(net, optimizer)
        train(reference_net, reference)
    for p, q in zip(net.parameters(), reference_net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("options", KINDS)
def test_a_copy_is_an_optimizer_of_its_own(options: dict[str, Any]) -> None:
    net, optimizer = trained(**options)
    other_net, other = copy.deepcopy((net, optimizer))
    for _ in range(2):
        train(other_net, other)
    assert optimizer.state[net.weight]["step"].item() == 2
    for _ in range(2):
        train(net, optimizer)
    for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
        assert torch.equal(p, q)


def test_gradients_are_given_back_when_a_step_does_not_come() -> None:
    net, optimizer = trained(max_grad_norm=1.0)
    scaler = LossScaler("cpu", init_scale=2.0)
    scaler.scale(net(torch.ones(2, 64, dtype=torch.bfloat16)).float().sum()).backward()
    gradient = weakref.ref(net.weight.grad)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = optimizer.register_step_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        scaler.step(optimizer)
    handle.remove()
    optimizer.zero_grad()
    assert gradient() is None


def test_a_step_that_is_refused_lets_go_of_gradients() -> None:
    net, optimizer = trained()
    net.weight.grad = torch.ones_like(net.weight)
    gradient = weakref.ref(net.weight.grad)
    optimizer.state[net.weight]["exp_avg"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match="shape"):
        optimizer.step()
    net.weight.grad = None
    assert gradient() is None
