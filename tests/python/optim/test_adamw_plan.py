"""What AdamW keeps between steps must give way to every change that a user can make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fulgurite import _C
from fulgurite.demo.memory import peak_bytes
from fulgurite.optim import AdamW, _plan


def parameters(count: int = 4, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(5, 7, generator=generator).to(dtype)) for _ in range(count)]


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def fresh(optimizer: AdamW) -> None:
    """Forget what is kept, so that the next step gathers everything anew."""
    optimizer._plan = None


Change = Callable[[AdamW, list[nn.Parameter]], Any]


def drop_gradient(_: AdamW, params: list[nn.Parameter]) -> None:
    params[1].grad = None


def replace_moment(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    optimizer.state[params[2]]["exp_avg"] = torch.full_like(params[2], 0.25)


def replace_step(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    optimizer.state[params[0]]["step"] = torch.tensor(1000.0)


def replace_state(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    old = optimizer.state[params[3]]
    optimizer.state[params[3]] = {key: value * 2 for key, value in old.items()}


def forget_state(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    del optimizer.state[params[0]]


def clear_state(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    optimizer.state.clear()


def replace_parameter(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    new = nn.Parameter(params[1].detach() + 1)
    new.grad = torch.ones_like(new)
    optimizer.param_groups[0]["params"][1] = params[1] = new


def replace_data(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    params[1].data = params[1].detach().clone().t().contiguous().t()


def resize(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    p, state = params[2], optimizer.state[params[2]]
    p.data = torch.ones(3)
    p.grad = torch.ones(3)
    for key in ("exp_avg", "exp_avg_sq"):
        state[key].data = torch.ones(3)


def switch_amsgrad(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["amsgrad"] = True


def switch_maximize(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["maximize"] = True


def start_averages(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0]["ema_decay"] = 0.5


def other_rates(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    optimizer.param_groups[0] |= {"lr": torch.tensor(0.5), "betas": (0.5, 0.6), "eps": 1e-3}


def remove_parameter(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    params.pop()
    optimizer.param_groups[0]["params"].pop()


def cast(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    params[1].data = params[1].data.bfloat16()
    params[1].grad = params[1].grad.bfloat16()


def swap(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    new = nn.Parameter(params[2].detach() * 2)
    new.grad = torch.ones_like(new)
    torch.utils.swap_tensors(params[2], new)


def swap_state(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    torch.utils.swap_tensors(optimizer.state[params[2]]["exp_avg"], torch.ones(5, 7))


def exchange_states(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    state, (p, q) = optimizer.state, params[:2]
    state[p], state[q] = state[q], state[p]


def hand_on_a_state(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    state = optimizer.state.pop(params[3])
    replace_parameter(optimizer, params)
    optimizer.state[params[1]] = state


def move_to_a_group(optimizer: AdamW, params: list[nn.Parameter]) -> None:
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": [moved], "lr": 0.3, "decoupled": False})


CHANGES = [
    drop_gradient, replace_moment, replace_step, replace_state, forget_state, clear_state,
    replace_parameter, replace_data, resize, switch_amsgrad, switch_maximize, start_averages,
    other_rates, remove_parameter, move_to_a_group, cast, swap, swap_state, exchange_states,
    hand_on_a_state,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_step_sees_the_change(change: Change) -> None:
    """Against an optimizer that gathers its lists at every step."""
    found = []
    for keeps in (True, False):
        params = parameters()
        optimizer = AdamW(list(params), lr=0.1)
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
        give_gradients(params, 3)
        change(optimizer, params)
        if not keeps:
            fresh(optimizer)
        optimizer.step()
        give_gradients(params, 4)
        if not keeps:
            fresh(optimizer)
        optimizer.step()
        found.append((params, optimizer))
    (kept, ours), (anew, reference) = found
    for p, q in zip(kept, anew, strict=True):
        assert torch.equal(p, q)
        assert ours.state[p].keys() == reference.state[q].keys()
        for key, value in ours.state[p].items():
            assert torch.equal(value, reference.state[q][key]), key


@pytest.mark.parametrize("kind", [_C.HeldLists, _plan._HeldLists])
def test_the_lists_that_are_held(kind: Any) -> None:
    """The module's class, and the one that stands in where the module is not built."""
    a, b, c = (torch.zeros(2) for _ in range(3))
    lists, states = [[a, b], []], {a: {"step": c, "note": "text"}, b: {}}
    held = kind(lists, states)
    assert held.same([[a, b], []], {a: {"step": c, "note": states[a]["note"]}, b: {}})
    different: list[tuple[list[list[Any]], dict[Any, Any]]] = [
        ([[b, a], []], states),
        ([[a], [b]], states),
        ([[a, b]], states),
        ([[a, b], [c]], states),
        (lists, {a: states[a]}),
        (lists, {b: {}, a: states[a]}),
        (lists, {c: states[a], b: {}}),
        (lists, {a: {"step": b, "note": states[a]["note"]}, b: {}}),
        (lists, {a: {"other": c, "note": states[a]["note"]}, b: {}}),
        (lists, {a: {"step": c, "note": states[a]["note"], "more": c}, b: {}}),
    ]
    for other_lists, other_states in different:
        assert not held.same(other_lists, other_states)
    torch.utils.swap_tensors(b, torch.ones(2))  # the same object with another tensor in it
    assert not held.same(lists, states)


def test_a_gradient_that_comes_late() -> None:
    params = parameters()
    optimizer = AdamW(params)
    give_gradients(params[:2], 0)
    optimizer.step()
    plan = optimizer._plan
    give_gradients(params[:2], 1)
    optimizer.step()
    assert optimizer._plan is plan
    give_gradients(params, 2)
    optimizer.step()
    assert optimizer._plan is not plan
    assert [float(optimizer.state[p]["step"]) for p in params] == [3.0, 3.0, 1.0, 1.0]


def test_gradients_are_not_held_after_the_step() -> None:
    params = parameters()
    optimizer = AdamW(params, max_grad_norm=1.0)
    give_gradients(params, 0)
    uses = params[0].grad._use_count()
    optimizer.step()
    assert params[0].grad._use_count() == uses


def test_a_sparse_gradient_after_dense_ones() -> None:
    params = parameters()
    optimizer = AdamW(params)
    give_gradients(params, 0)
    optimizer.step()
    params[0].grad = params[0].grad.to_sparse()
    with pytest.raises(RuntimeError, match="expected dense gradients"):
        optimizer.step()


def test_versions_are_raised_as_the_operator_raises_them() -> None:
    params = parameters(dtype=torch.bfloat16)
    copies = [torch.empty(5, 7) for _ in params]
    optimizer = AdamW(params, master="split", copies=copies, ema_decay=0.9)
    give_gradients(params, 0)
    optimizer.step()
    tensors = [*params, *copies, *optimizer.state[params[0]].values()]
    before = [tensor._version for tensor in tensors]
    optimizer.step()
    assert all(t._version > b for t, b in zip(tensors, before, strict=True))
    wait = (params[0] * params[0]).sum()
    give_gradients(params, 1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        wait.backward()


def test_a_compiled_step_is_the_same() -> None:
    ours, plain = parameters(), parameters()
    eager, compiled = AdamW(ours, max_grad_norm=1.0), AdamW(plain, max_grad_norm=1.0)
    step = torch.compile(compiled.step, backend="eager")
    for i in range(3):
        give_gradients(ours, i)
        give_gradients(plain, i)
        eager.step()
        step()
    for p, q in zip(ours, plain, strict=True):
        assert torch.equal(p, q)
    assert torch.equal(eager.total_norm, compiled.total_norm)


def test_a_step_takes_no_memory_to_speak_of() -> None:
    """Less than 1 MiB for 2,000 parameters, the gradients' statistics and clipping included."""
    params = [nn.Parameter(torch.zeros(1024)) for _ in range(2000)]
    optimizer = AdamW(params, max_grad_norm=1.0)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert peak_bytes(optimizer.step) < 1 << 20
