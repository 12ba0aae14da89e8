"""Fine-tune with transformers' Trainer; one line leads its model to fulgurite.

A small Qwen3-MoE with random weights learns to predict bytes of the standard library's sources.
Trainer computes in bfloat16 by autocast where this machine multiplies it, else in float32, clips
and steps by itself, and knows nothing of the switch. What one sees: time and memory of a step, and
that the losses agree to rounding.
"""

import tempfile

import torch
import transformers
from before_after import QUICK, Log, measure, report

import fulgurite.integrations.transformers as ft
from fulgurite.demo.data import Corpus, read_text
from fulgurite.demo.train import default_precision

steps, batch, tokens = (3, 2, 64) if QUICK else (20, 4, 512)
bfloat16 = default_precision() == "bf16"
config = transformers.Qwen3MoeConfig(
    vocab_size=256,
    hidden_size=64 if QUICK else 256,
    moe_intermediate_size=64 if QUICK else 256,
    num_hidden_layers=2 if QUICK else 4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16 if QUICK else 64,
    num_experts=16,
    num_experts_per_tok=4,
    use_cache=False,
)
corpus = Corpus.from_bytes(read_text(None), tokens, "the standard library")
rows = corpus.batch(1, steps * batch, tokens - 1, seed=0)
dataset = [{"input_ids": row, "labels": row} for row in rows]


def train(model: transformers.Qwen3MoeForCausalLM, steps: int, log: Log) -> None:
    class Losses(transformers.TrainerCallback):
        def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
            if "loss" in logs:
                log(logs["loss"])

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.gettempdir(), max_steps=steps, bf16=bfloat16,
        per_device_train_batch_size=batch, learning_rate=1e-3,
        lr_scheduler_type="constant", use_cpu=True, dataloader_pin_memory=False,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=dataset, callbacks=[Losses()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


torch.manual_seed(0)
model = transformers.Qwen3MoeForCausalLM(config)
before = measure(train, model, steps)
ft.apply(model)  # the line
after = measure(train, model, steps)
report(before, after, bound=0.05 if bfloat16 else 0.01)
