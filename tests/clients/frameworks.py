"""The same training in Trainer, Accelerate and Lightning: two epochs of three steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torch.utils.data import DataLoader

STEPS, EPOCHS, BATCH = 3, 2, 2
LR, DECAY = 1e-3, 0.1
BAD = 0  # a batch that begins with this token has a loss of infinity


class Tiny(nn.Module):
    """Two layers of Llama that write down their losses."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, use_cache=False,
        )  # fmt: skip
        self.llama = transformers.LlamaForCausalLM(config).to(dtype)
        self.losses: list[float] = []

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = self.llama(input_ids=input_ids, labels=labels).loss
        if input_ids[0, 0] == BAD:
            loss = loss * float("inf")
        self.losses.append(loss.item())
        return {"loss": loss}


@dataclass
class Setup:
    """What is trained with what; ``folder`` gets a checkpoint after the first epoch."""

    optimizer: type[Optimizer]
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    clip: float | None = None  # by the framework
    accumulate: int = 1
    scaler: GradScaler | None = None  # with float16 autocast
    overflow: bool = False  # in the second step of each epoch
    resume: bool = False  # from the checkpoint
    asks: bool = False  # Lightning's schedule asks the scaler whether it moves on

    def batches(self) -> list[dict[str, Tensor]]:
        """Examples of one epoch, in order."""
        draws = torch.Generator().manual_seed(1)
        shape = (STEPS * self.accumulate * BATCH, 8)
        ids = torch.randint(1, 160, shape, generator=draws)
        if self.overflow:
            ids[self.accumulate * BATCH, 0] = BAD
        return [{"input_ids": row, "labels": row} for row in ids]

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.batches(), batch_size=BATCH)  # type: ignore[arg-type]

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Matrices decay, vectors do not."""
        params = list(model.parameters())
        return [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
        ]

    def make(self, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
        optimizer = self.optimizer(self.groups(model), lr=LR, **self.options)
        return optimizer, LinearLR(optimizer, 1.0, 0.1, STEPS * EPOCHS)


@dataclass
class Outcome:
    model: Tiny
    optimizer: Optimizer
    rates: list[float]  # after each step
    scales: list[float]

    @property
    def losses(self) -> list[float]:
        return self.model.losses

    def seen(self, scaler: GradScaler | None) -> None:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.scales.append(1.0 if scaler is None else scaler.get_scale())


def with_trainer(setup: Setup) -> Outcome:
    AcceleratorState._reset_state(reset_partial_state=True)
    outcome = Outcome(Tiny(setup.dtype), None, [], [])  # type: ignore[arg-type]

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            outcome.seen(setup.scaler)

    trainer = transformers.Trainer(
        outcome.model,
        transformers.TrainingArguments(
            output_dir=str(setup.folder), num_train_epochs=EPOCHS, save_strategy="epoch",
            per_device_train_batch_size=BATCH, gradient_accumulation_steps=setup.accumulate,
            train_sampling_strategy="sequential", weight_decay=DECAY,
            max_grad_norm=setup.clip or 0.0, fp16=setup.scaler is not None,
            use_cpu=True, report_to=[], disable_tqdm=True,
        ),
        train_dataset=setup.batches(),
        optimizer_cls_and_kwargs=(setup.optimizer, {"lr": LR, **setup.options}),
        callbacks=[Watch()],
    )  # fmt: skip
    if setup.scaler is not None:  # Trainer makes one for CUDA alone
        trainer.accelerator.scaler, trainer.accelerator.native_amp = setup.scaler, True
    outcome.optimizer = trainer.create_optimizer()
    trainer.train(resume_from_checkpoint=f"{setup.folder}/checkpoint-3" if setup.resume else None)
    return outcome


def with_accelerate(setup: Setup) -> Outcome:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="no" if setup.scaler is None else "fp16",
        gradient_accumulation_steps=setup.accumulate,
    )
    if setup.scaler is not None:  # Accelerate makes one for CUDA alone
        accelerator.scaler, accelerator.native_amp = setup.scaler, True
    tiny = Tiny(setup.dtype)
    own, schedule = setup.make(tiny)
    outcome = Outcome(tiny, own, [], [])
    model, optimizer, loader, schedule = accelerator.prepare(tiny, own, setup.loader(), schedule)
    if setup.resume:
        accelerator.load_state(str(setup.folder))
    for epoch in range(int(setup.resume), EPOCHS):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if accelerator.sync_gradients and setup.clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), setup.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                outcome.seen(setup.scaler)
        if epoch == 0:
            accelerator.save_state(str(setup.folder))
    return outcome


class Module(lightning.LightningModule):
    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.tiny, self.setup_of = Tiny(setup.dtype), setup
        self.outcome = Outcome(self.tiny, None, [], [])  # type: ignore[arg-type]

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.tiny(**batch)["loss"]
        return loss

    def configure_optimizers(self) -> Any:
        self.outcome.optimizer, schedule = self.setup_of.make(self.tiny)
        schedule = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": self.outcome.optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scaler = self.setup_of.scaler
        if not (self.setup_of.asks and scaler.was_skipped(scheduler.optimizer)):  # type: ignore
            scheduler.step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.setup_of.accumulate == 0:
            self.outcome.seen(self.setup_of.scaler)


def with_lightning(setup: Setup) -> Outcome:
    module = Module(setup)
    checkpoint = ModelCheckpoint(setup.folder, "{epoch}", save_top_k=-1)
    plugins = [] if setup.scaler is None else [MixedPrecision("16-mixed", "cpu", setup.scaler)]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=EPOCHS, plugins=plugins,
        accumulate_grad_batches=setup.accumulate, gradient_clip_val=setup.clip,
        callbacks=[checkpoint], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    saved = f"{setup.folder}/epoch=0.ckpt" if setup.resume else None
    trainer.fit(module, setup.loader(), ckpt_path=saved)
    return module.outcome


FRAMEWORKS: dict[str, Callable[[Setup], Outcome]] = {
    "trainer": with_trainer,
    "accelerate": with_accelerate,
    "lightning": with_lightning,
}
