"""Train a vision transformer of timm; one line leads its attention to fulgurite.

    pip install timm
The model learns to tell ten patterns under noise, in float32. What one sees: time and memory of a
step, and that the losses agree to rounding. 197 tokens are few, so most of a step is the layers'
matrix products, which stay torch's.
"""

import timm
import torch
from before_after import QUICK, Log, measure, report
from torch import nn

from fulgurite.integrations import timm as fulgurite_timm

steps, batch, size, depth = (3, 2, 64, 2) if QUICK else (20, 8, 224, 12)
classes = 10


def train(model: nn.Module, steps: int, log: Log) -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(classes, 3, size, size, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for _ in range(steps):
        labels = torch.randint(classes, (batch,), generator=generator)
        images = patterns[labels] + torch.randn(batch, 3, size, size, generator=generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log(loss.item())


torch.manual_seed(0)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=size, depth=depth, num_classes=classes
).train()
before = measure(train, model, steps)
fulgurite_timm.apply(model)  # the line
after = measure(train, model, steps)
report(before, after, bound=0.01)
