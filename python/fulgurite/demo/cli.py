"""The command line: options, error lines, interruption."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from fulgurite.demo import checkpoint, report
from fulgurite.demo.data import Corpus, read_text
from fulgurite.demo.errors import UserError
from fulgurite.demo.train import Run, Settings

INTERRUPTED = 128  # plus the signal's number, as shells have it


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def at_least(minimum: int) -> Callable[[str], int]:
    """A converter of option values that refuses numbers out of range."""

    def number(text: str) -> int:
        value = int(text)
        if not minimum <= value < 2**31:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {value}")
        return value

    return number


def parser() -> Parser:
    made = Parser(
        prog="fulgurite.demo",
        description="Train a small mixture-of-experts language model on text, with fulgurite and "
        "with plain PyTorch side by side.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add = made.add_argument
    add("--text", metavar="FILE", help="text to train on (default: Python's standard library)")
    add(
        "--precision",
        choices=("bf16", "fp16", "fp32"),
        help="of the products (default: bf16 where the machine multiplies it, else fp32)",
    )
    add("--arms", choices=("both", "fulgurite", "plain"), help="which to train (default: both)")
    add("--steps", type=at_least(1), help="optimizer steps (default: what fits in four minutes)")
    add("--batch", type=at_least(1), help="sequences per step (default: 2)")
    add("--seed", type=at_least(0), help="of weights and batches (default: 0)")
    add(
        "--overflow-step",
        type=at_least(0),
        metavar="N",
        help="in fp16, let the gradients of step N overflow; 0 for none (default: 2)",
    )
    add("--quick", action="store_true", help="a small model, within a minute")
    add(
        "--out",
        metavar="DIR",
        default="fulgurite-demo",
        help="output folder (default: %(default)s)",
    )
    add("--checkpoint-every", type=at_least(1), default=50, metavar="N", help="steps (default: 50)")
    add(
        "--resume", action="store_true", default=False, help="continue the run in the output folder"
    )
    return made


def writable_folder(path: Path) -> Path:
    """Make an output folder.

    Raises:
        UserError: it cannot be made, or no file can be made in it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from error
    return path


class Interruption:
    """Inside, the first SIGINT or SIGTERM is a flag to look at between steps; the next kills."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "Interruption":
        self.handlers = {
            number: signal.signal(number, self.receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        return self.signal is not None


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options that define the run, as far as they were given, under the names of Settings."""
    given = {
        entry.name: getattr(options, entry.name)
        for entry in fields(Settings)
        if entry.name in options
    }
    if "arms" in given:
        given["arms"] = ("fulgurite", "plain") if options.arms == "both" else (options.arms,)
    if "text" in given:
        given["text"] = str(Path(options.text).absolute())
    return given


def new_run(given: dict[str, Any]) -> Run:
    """A run of these settings, on its text."""
    if given.get("precision") == "fp16":
        given = {"overflow_step": 2} | given
    settings = Settings(**given)
    path = None if settings.text is None else Path(settings.text)
    name = "the standard library" if path is None else str(path)
    return Run(settings, Corpus.from_bytes(read_text(path), settings.model.sequence, name))


def resumed_run(given: dict[str, Any], folder: Path) -> Run:
    """The run of a folder's newest checkpoint.

    Raises:
        UserError: no readable checkpoint, other settings than the run's, or a text that changed.
    """
    newest, state = checkpoint.read_run(folder)
    saved = state["settings"] | {"arms": tuple(state["settings"]["arms"])}
    for name, value in given.items():
        if value != saved[name]:
            raise UserError(f"--resume continues with {name} {saved[name]}, not {value}")
    run = new_run(saved)
    if state["digest"] != run.corpus.digest:
        raise UserError("--resume needs the text that the run began with; it has changed")
    checkpoint.load(run, newest, state)
    return run


def train(run: Run, folder: Path, every: int, console: Console) -> int:
    """Train to the end and report, or save and stop at a signal; returns the exit code."""
    with Interruption() as interruption, report.Reporter(run, console) as reporter:
        for arm, step in run.train(interruption):
            reporter.show(arm, step)
            if run.step % every == 0 and not run.finished and not run.behind(run.step):
                checkpoint.save(run, folder)
    written = checkpoint.save(run, folder)
    if interruption.signal is not None:
        console.print(
            f"interrupted after step {run.step}, saved {written}; --resume continues",
            soft_wrap=True,
        )
        return INTERRUPTED + interruption.signal
    report.finish(run, folder, console)
    return 0


def run_demo(options: argparse.Namespace) -> int:
    console = Console()
    folder = writable_folder(Path(options.out))
    given = given_settings(options)
    run = resumed_run(given, folder) if options.resume else new_run(given)
    if options.resume:
        console.print(f"continuing after step {run.step}")
    elif "precision" not in given and run.settings.precision == "fp32":
        console.print(
            "in float32, which is faster than bfloat16 on this machine: it has no products of"
            " bfloat16 (--precision bf16 for those all the same)",
            soft_wrap=True,
        )
    return train(run, folder, options.checkpoint_every, console)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0, 2 for bad input, 128 + signal when interrupted."""
    options = parser().parse_args(arguments)
    try:
        return run_demo(options)
    except UserError as error:
        print(f"fulgurite.demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while reading, or while reporting on a run already saved
        return INTERRUPTED + signal.SIGINT
