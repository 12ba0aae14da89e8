"""Fine-tune a mixture-of-experts model of transformers; one line leads it to fulgurite.

A small Mixtral with random weights learns to predict bytes of the standard library's sources, in
bfloat16 where this machine multiplies it, else in float32. First with the attention and experts of
transformers, then with fulgurite's. What one sees: time and memory of a step, and that the losses
agree to rounding. The optimizer is the same on both sides.
"""

import torch
from before_after import QUICK, Log, measure, report
from transformers import MixtralConfig, MixtralForCausalLM

import fulgurite.integrations.transformers as ft
from fulgurite.demo.data import Corpus, read_text
from fulgurite.demo.train import default_precision
from fulgurite.optim import AdamW

steps, batch, tokens = (3, 2, 64) if QUICK else (20, 4, 512)
bfloat16 = default_precision() == "bf16"
config = MixtralConfig(
    vocab_size=256,
    hidden_size=64 if QUICK else 256,
    intermediate_size=128 if QUICK else 512,
    num_hidden_layers=2 if QUICK else 4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=2,
    use_cache=False,
)
corpus = Corpus.from_bytes(read_text(None), tokens, "the standard library")


def train(model: MixtralForCausalLM, steps: int, log: Log) -> None:
    # bfloat16 weights lose small updates; their missing 16 bits are kept beside them.
    optimizer = AdamW(
        model.parameters(), lr=1e-3, master="split" if bfloat16 else None, max_grad_norm=1.0
    )
    for step in range(steps):
        ids = corpus.batch(step, batch, tokens - 1, seed=0)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log(loss.item())


torch.manual_seed(0)
model = MixtralForCausalLM(config).to(torch.bfloat16 if bfloat16 else torch.float32).train()
before = measure(train, model, steps)
ft.apply(model)  # the line
after = measure(train, model, steps)
report(before, after, bound=0.05 if bfloat16 else 0.01)
