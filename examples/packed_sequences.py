"""Documents of any length in one row, without padding and without a mask of tokens × tokens.

A small model reads paragraphs of sources, first under a mask that keeps them apart, then by
attention_varlen. What one sees: time and memory of a step, and that the losses agree to rounding.
"""

import torch
from before_after import QUICK, Log, measure, report
from torch import Tensor, nn

import fulgurite.nn.functional as F
from fulgurite.demo.data import read_text

steps, width, count = (3, 64, 8) if QUICK else (20, 256, 16)
paragraphs = [p[:512] for p in read_text(None)[: 1 << 20].split(b"\n\n") if len(p) > 1]


def masked(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    number = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    mask = (number[:, None] == number).tril()
    by_head = (x.transpose(0, 1) for x in (query, key, value))
    return nn.functional.scaled_dot_product_attention(*by_head, mask).transpose(0, 1)


def packed(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    return F.attention_varlen(query, key, value, offsets, offsets, causal=True)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(256, width), nn.Linear(width, 3 * width)
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 256))

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        x = self.embed(tokens)
        query, key, value = self.qkv(x).unflatten(-1, (3, 4, -1)).unbind(1)
        return self.head(x + self.attention(query, key, value, offsets).flatten(1))


def train(model: Model, steps: int, log: Log) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        row = [torch.tensor(list(p)) for p in paragraphs[step * count :][:count]]
        offsets = torch.tensor([0, *(len(p) - 1 for p in row)]).cumsum(0)  # all but the last byte
        logits = model(torch.cat([p[:-1] for p in row]), offsets)
        loss = nn.functional.cross_entropy(logits, torch.cat([p[1:] for p in row]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log(loss.item())


torch.manual_seed(0)
model = Model()
model.attention = masked
before = measure(train, model, steps)
model.attention = packed  # the line
after = measure(train, model, steps)
report(before, after, bound=0.001)
