"""A small model, and steps whose batches are those of their numbers."""

from __future__ import annotations

import torch
from torch import nn


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(1)) -> None:
    for step in steps:
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        net(torch.randn(4, 16, generator=generator)).square().sum().backward()
        optimizer.step()
