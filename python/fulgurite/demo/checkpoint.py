"""Checkpoints: a folder per step with run.json and, per arm, weights and optimizer state.

``<arm>.safetensors`` holds the model (parameters, selection biases, loads), ``<arm>.optimizer.pt``
the optimizer's and the scaler's state. A checkpoint appears under its name only when complete; the
one before it is then removed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fulgurite.demo.errors import UserError
from fulgurite.demo.train import Run

PREFIX = "checkpoint-"


def save(run: Run, folder: Path) -> Path:
    """Write a checkpoint of a run that stands between two steps; returns its folder.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    final = folder / f"{PREFIX}{run.step:06d}"
    try:
        write(run, final)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError
        raise UserError(f"cannot write {final}: {error}") from error
    for older in found(folder):
        if older != final:
            shutil.rmtree(older)
    return final


def write(run: Run, final: Path) -> None:
    partial = final.with_name(f"partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, track in run.tracks.items():
        save_file(track.arm.model.state_dict(), partial / f"{name}.safetensors")
        torch.save(track.arm.training_state(), partial / f"{name}.optimizer.pt")
    (partial / "run.json").write_text(json.dumps(run.state()))
    if final.exists():
        shutil.rmtree(final)
    partial.replace(final)


def found(folder: Path) -> list[Path]:
    """Complete checkpoints of an output folder, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*"))


def read_run(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of an output folder and the state of its run.

    Raises:
        UserError: there is none, or its run.json cannot be read.
    """
    checkpoints = found(folder)
    if not checkpoints:
        raise UserError(f"no checkpoint in {folder}")
    newest = checkpoints[-1]
    try:
        state: dict[str, Any] = json.loads((newest / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {newest / 'run.json'}: {error}") from error
    return newest, state


def load(run: Run, checkpoint: Path, state: dict[str, Any]) -> None:
    """Bring a fresh run to where the checkpoint's stood.

    Raises:
        UserError: a file of the checkpoint is missing or damaged.
    """
    run.load_state(state)
    for name, track in run.tracks.items():
        try:
            track.arm.model.load_state_dict(load_file(checkpoint / f"{name}.safetensors"))
            path = checkpoint / f"{name}.optimizer.pt"
            track.arm.load_training_state(torch.load(path, weights_only=True))
        except Exception as error:  # safetensors, pickle, zip and torch raise kinds of their own
            line = str(error).splitlines()[0]
            raise UserError(f"cannot read arm {name} of {checkpoint}: {line}") from error
