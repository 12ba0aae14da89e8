"""Trainer, Accelerate and Lightning: what torch's optimizer gives, overflows, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.optimizer import AcceleratedOptimizer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.amp import GradScaler

from frameworks import FRAMEWORKS, Outcome, Setup, Tiny
from fulgurite.amp import LossScaler
from fulgurite.optim import AdamW
from ulp_distance import ulps

Run = Callable[[Setup], Outcome]
each = pytest.mark.parametrize("run", FRAMEWORKS.values(), ids=FRAMEWORKS)

CLIP = 0.5
SCALE = 2.0**10


def distance(a: Outcome, b: Outcome) -> float:
    """Of the weights, in units of the last place."""
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return max(ulps(x.detach(), y.detach()) for x, y in pairs)


def assert_close_in_half(got: Outcome, expected: Outcome) -> None:
    """A unit of a weight may round its float16 copy the other way; a step moves a weight by 1e-3,
    and without clipping they end 3e-4 apart.
    """
    torch.testing.assert_close(
        got.model.state_dict(), expected.model.state_dict(), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(got.losses, expected.losses, rtol=1e-3, atol=0, equal_nan=True)


@each
def test_losses_and_weights_are_those_of_torch(run: Run, tmp_path: Path) -> None:
    """With groups, a schedule and accumulation; clipped by the framework and in the step."""
    expected = run(Setup(torch.optim.AdamW, tmp_path, clip=CLIP, accumulate=2))
    free = run(Setup(torch.optim.AdamW, tmp_path, accumulate=2))
    assert distance(free, expected) > 1000, "nothing was clipped"
    in_the_step = {"max_grad_norm": CLIP}  # the norm plus 1e-6 divides: 17 ulps of a gradient
    for options, clip, bound in (({}, CLIP, 8), (in_the_step, None, 64), (in_the_step, CLIP, 64)):
        got = run(Setup(AdamW, tmp_path, options, clip=clip, accumulate=2))
        assert len(got.losses) == 12
        torch.testing.assert_close(got.losses, expected.losses, rtol=1e-6, atol=0)
        assert got.rates == expected.rates
        assert distance(got, expected) < bound
    assert [len(group["params"]) for group in got.optimizer.param_groups] == [16, 5]
    assert [group["weight_decay"] for group in got.optimizer.param_groups] == [0.1, 0.0]


@each
def test_an_overflow_is_skipped_and_the_schedule_waits(run: Run, tmp_path: Path) -> None:
    scaler, plain = LossScaler("cpu", SCALE), GradScaler("cpu", SCALE)
    expected = run(Setup(torch.optim.AdamW, tmp_path, clip=CLIP, scaler=plain, overflow=True))
    options = {"fused_unscale": False}
    got = run(Setup(AdamW, tmp_path, options, clip=CLIP, scaler=scaler, overflow=True))
    assert scaler.skipped == 2
    assert scaler.last_skipped == 5
    assert got.scales == expected.scales == [SCALE, *[SCALE / 2] * 3, *[SCALE / 4] * 2]
    assert got.rates == expected.rates
    assert_close_in_half(got, expected)
    assert {state["step"].item() for state in got.optimizer.state.values()} == {4}
    waits = got.rates[0] == got.rates[1]
    assert waits == (run is not FRAMEWORKS["lightning"]), "Lightning's schedules wait for nothing"


@each
def test_a_step_that_unscales_itself_skips_but_hides_it(run: Run, tmp_path: Path) -> None:
    """As torch's fused steps: the scale and the weights are right, the schedule goes on."""
    scaler, plain = LossScaler("cpu", SCALE), GradScaler("cpu", SCALE)
    fused = {"fused": True}
    expected = run(Setup(torch.optim.AdamW, tmp_path, fused, scaler=plain, overflow=True))
    got = run(Setup(AdamW, tmp_path, scaler=scaler, overflow=True))
    assert scaler.skipped == 2
    assert got.scales == expected.scales
    assert got.rates == expected.rates
    assert got.rates[1] < got.rates[0]
    assert_close_in_half(got, expected)


def test_clipping_in_lightning_is_the_steps_if_it_unscales(tmp_path: Path) -> None:
    run = FRAMEWORKS["lightning"]
    with pytest.raises(RuntimeError, match="AdamW, does not allow for gradient clipping"):
        run(Setup(AdamW, tmp_path / "a", clip=CLIP, scaler=LossScaler("cpu", SCALE)))
    got = run(Setup(AdamW, tmp_path, {"max_grad_norm": CLIP}, scaler=LossScaler("cpu", SCALE)))
    plain = GradScaler("cpu", SCALE)
    expected = run(Setup(torch.optim.AdamW, tmp_path, clip=CLIP, scaler=plain))
    assert_close_in_half(got, expected)


def test_a_schedule_of_lightning_that_asks_the_scaler_waits(tmp_path: Path) -> None:
    scaler = LossScaler("cpu", SCALE)
    setup = Setup(AdamW, tmp_path, scaler=scaler, overflow=True, asks=True)
    got = FRAMEWORKS["lightning"](setup)
    accelerate = Setup(
        AdamW, tmp_path, {"fused_unscale": False}, scaler=LossScaler("cpu", SCALE), overflow=True
    )
    assert got.rates == FRAMEWORKS["accelerate"](accelerate).rates
    assert got.rates[0] == got.rates[1]


KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "master": (torch.bfloat16, {"master": "fp32"}),
    "split": (torch.bfloat16, {"master": "split"}),
    "split_8bit": (torch.bfloat16, {"master": "split", "state_dtype": "8bit"}),
    "half": (torch.float16, {"master": "fp32"}),
    "stochastic": (torch.bfloat16, {"stochastic_rounding": True, "state_dtype": torch.bfloat16}),
}


def assert_same(got: Any, expected: Any) -> None:
    """Trees of numbers and tensors, to the bit."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@each
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_resumes_to_the_bit(run: Run, kind: str, tmp_path: Path) -> None:
    """Weights, states of the optimizer and the scaler, losses of what is left."""
    dtype, options = KINDS[kind]
    half = dtype == torch.float16  # whose gradients only the step unscales
    options = {**options, **({"max_grad_norm": CLIP} if half else {"fused_unscale": False})}
    if half and run is FRAMEWORKS["trainer"]:
        setup = Setup(AdamW, tmp_path, options, dtype, scaler=LossScaler("cpu", SCALE))
        with pytest.raises(ValueError, match="unscale FP16"):  # Trainer does, to log their norm
            run(setup)
        return
    outcomes, scalers = [], []
    for resume in (False, True):
        scaler = LossScaler("cpu", SCALE, growth_interval=2, hysteresis=2, refill="growth")
        scalers.append(None if dtype == torch.bfloat16 else scaler)
        torch.manual_seed(int(resume))  # nothing is drawn that a checkpoint does not carry
        setup = Setup(
            AdamW, tmp_path, options, dtype, None if half else CLIP, scaler=scalers[-1],
            overflow=scalers[-1] is not None, resume=resume,
        )  # fmt: skip
        outcomes.append(run(setup))
    whole, rest = outcomes
    assert len(whole.losses) == 6
    assert rest.losses == whole.losses[3:]
    assert_same(rest.model.state_dict(), whole.model.state_dict())
    got, expected = (outcome.optimizer.state_dict() for outcome in (rest, whole))
    assert got["param_groups"] == expected["param_groups"]
    assert_same(got["state"], expected["state"])
    assert rest.rates == whole.rates[3:]
    if scalers[0] is not None and scalers[1] is not None:
        assert scalers[0].skipped == 2
        assert scalers[1].state_dict() == scalers[0].state_dict()


def test_trainer_takes_the_class_or_the_optimizer(tmp_path: Path) -> None:
    """``optimizer_cls_and_kwargs`` makes groups; ``optimizers`` are taken as they are; ``optim``
    is a list of transformers' own names.
    """
    model = Tiny(torch.float32)
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    own = AdamW(model.parameters())
    assert transformers.Trainer(model, args, optimizers=(own, None)).create_optimizer() is own
    trainer = transformers.Trainer(model, args, optimizer_cls_and_kwargs=(AdamW, {"lr": 1e-4}))
    made = trainer.create_optimizer()
    assert type(made) is AdamW
    assert len(made.param_groups) == 2
    with pytest.raises(ValueError, match="not a valid OptimizerNames"):
        transformers.TrainingArguments(output_dir=str(tmp_path), optim="fulgurite")


def test_a_scaler_is_asked_by_the_optimizer_that_a_framework_hands_out(tmp_path: Path) -> None:
    """Accelerate and Lightning wrap what they are given."""
    scaler = LossScaler("cpu", SCALE)
    own = FRAMEWORKS["accelerate"](Setup(AdamW, tmp_path, scaler=scaler)).optimizer
    first = own.param_groups[0]["params"][0]
    first.grad = torch.full_like(first, float("inf"))
    scaler.step(own)
    scaler.update()
    wrapped = (AcceleratedOptimizer(own, device_placement=False), LightningOptimizer(own))
    for optimizer in (own, *wrapped):
        assert scaler.was_skipped(optimizer)
