"""Train in float16: weights of 16 bits, float32 masters, and a loss scale.

A small model predicts bytes of the standard library's sources. First float32 weights, autocast,
GradScaler, clip_grad_norm_ and AdamW. Then float16 weights whose float32 values the optimizer
keeps; its step unscales, clips, and skips where gradients overflowed. What one sees: less time, as
much memory (a weight, its gradient and master: 2 + 2 + 4 bytes for 4 + 4), and equal losses.
"""

import torch
from before_after import QUICK, Log, measure, report
from torch import Tensor, nn

from fulgurite.amp import LossScaler
from fulgurite.demo.data import Corpus, read_text
from fulgurite.optim import AdamW

steps, batch, context, width = (3, 32, 16, 64) if QUICK else (20, 48, 16, 2048)
corpus = Corpus.from_bytes(read_text(None), context, "the standard library")


def loss_of(model: nn.Module, step: int) -> Tensor:
    window = corpus.batch(step, batch, context, seed=0)
    return nn.functional.cross_entropy(model(window[:, :-1]).float(), window[:, -1])


def by_autocast(model: nn.Module, steps: int, log: Log) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    for step in range(steps):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, step)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        log(loss.item())


def with_masters(model: nn.Module, steps: int, log: Log) -> None:
    optimizer = AdamW(model.parameters(), lr=1e-3, master="fp32", max_grad_norm=1.0)
    scaler = LossScaler("cpu")
    for step in range(steps):
        loss = loss_of(model, step)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        log(loss.item())


torch.manual_seed(0)
model = nn.Sequential(
    nn.Embedding(256, 64), nn.Flatten(), nn.Linear(64 * context, width), nn.ReLU(),
    nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256),
)  # fmt: skip
before = measure(by_autocast, model, steps)
after = measure(with_masters, model.half(), steps)
report(before, after, bound=0.03)
