"""Optimizers that see a part of a model: ZeroRedundancyOptimizer's shares and FSDP's shards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from fulgurite.optim import AdamW


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(1)) -> None:
    for step in steps:
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        net(torch.randn(4, 16, generator=generator)).square().sum().backward()
        optimizer.step()


def test_a_share_of_the_parameters_has_no_norm(one_process: None) -> None:
    """ZeroRedundancyOptimizer gives each rank its own."""
    net = model()
    with pytest.raises(NotImplementedError, match=r"max_grad_norm .*ZeroRedundancyOptimizer"):
        ZeroRedundancyOptimizer(net.parameters(), AdamW, max_grad_norm=1.0)
    optimizer = ZeroRedundancyOptimizer(net.parameters(), AdamW, lr=0.01)
    train(net, optimizer)
    AdamW(net.parameters(), max_grad_norm=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"master": "split"}, {"master": "fp32"}, {"state_dtype": torch.bfloat16},
        {"state_dtype": "8bit"}, {"fused_unscale": False}, {"decoupled": False},
        {"ema_decay": 0.5}, {"stochastic_rounding": True},
    ],
)  # fmt: skip
def test_a_share_of_the_parameters_is_kept_as_asked(
    one_process: None, options: dict[str, Any]
) -> None:
    """ZeroRedundancyOptimizer writes what it is given into the groups, again before every step."""
    net, plain = nn.Linear(64, 128).bfloat16(), nn.Linear(64, 128).bfloat16()
    plain.load_state_dict(net.state_dict())
    torch.manual_seed(0)
    optimizer = ZeroRedundancyOptimizer(net.parameters(), AdamW, lr=0.01, **options)
    torch.manual_seed(0)
    other = AdamW(plain.parameters(), lr=0.01, **options)
    for _ in range(3):
        for module, stepped in ((net, optimizer), (plain, other)):
            stepped.zero_grad()
            module(torch.ones(2, 64, dtype=torch.bfloat16)).square().sum().backward()
            stepped.step()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.optim.state[p].keys() == other.state[q].keys()
    optimizer.consolidate_state_dict()
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    optimizer.load_state_dict(saved)
    optimizer.step()


def test_a_shard_has_no_norm() -> None:
    p = nn.Parameter(torch.zeros(3))
    p._fsdp_flattened = True  # how FSDP marks what it has cut
    AdamW([p])
    with pytest.raises(NotImplementedError, match=r"max_grad_norm .*FSDP"):
        AdamW([p], max_grad_norm=1.0)
