"""What the user sees: progress while training, then the table, the picture and the sample."""

import json
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

import fulgurite
from fulgurite.demo.arms import Step
from fulgurite.demo.model import generate
from fulgurite.demo.train import Run, Track, curve_bound, curve_distance, paired_ratio

matplotlib.use("Agg")  # before pyplot is imported: no display is needed
from matplotlib import pyplot as plt

TITLES = {"fulgurite": "fulgurite", "plain": "plain PyTorch", "reference": "fulgurite float32"}
STYLES: dict[str, dict[str, Any]] = {
    "fulgurite": {"color": "tab:blue", "linewidth": 1.6},
    "plain": {"color": "tab:orange", "linewidth": 1.6, "linestyle": (0, (3, 3))},
    "reference": {"color": "black", "linewidth": 0.8, "linestyle": ":"},
}
LINES_WITHOUT_TERMINAL = 20
PROMPT_BYTES = 64
SAMPLE_BYTES = 160


class Reporter:
    """A progress bar on a terminal, a line now and then elsewhere; skipped steps always tell."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run = run
        self.console = console
        self.told_step = run.step
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task: TaskID = self.bar.add_task("train", total=run.steps, status="")

    def __enter__(self) -> "Reporter":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def show(self, name: str, step: Step) -> None:
        """Tell what an arm's step did."""
        number = len(self.run.tracks[name].steps)
        if step.skipped:
            self.console.print(
                f"step {number}, {TITLES[name]}: skipped, {step.note}",
                style="yellow",
                soft_wrap=True,
            )
        status = self.status()
        self.bar.update(self.task, completed=self.run.step, total=self.run.steps, status=status)
        if self.console.is_terminal or self.run.behind(self.run.step):
            return
        every = max(1, (self.run.steps or 1) // LINES_WITHOUT_TERMINAL)
        if self.run.step % every == 0 and self.run.step > self.told_step:
            self.told_step = self.run.step
            total = self.run.steps or "?"
            self.console.print(f"step {self.run.step}/{total}  {status}", soft_wrap=True)

    def status(self) -> str:
        parts = [
            f"{TITLES[name]}: loss {track.losses[-1]:.3f}, "
            f"{tokens_per_second(self.run, track):,.0f} tokens/s"
            for name, track in self.run.tracks.items()
            if track.steps and name != "reference"
        ]
        if self.run.steps is not None:
            parts.append(f"{seconds_left(self.run):.0f} s left")
        return "; ".join(parts)


def seconds_left(run: Run) -> float:
    """Time that the remaining steps will take at the pace so far."""
    total = 0.0
    for name, track in run.tracks.items():
        remaining = min(run.steps or 0, track.limit or run.steps or 0) - len(track.steps)
        pace = median(track.seconds) if track.steps else 0.0
        time_left = remaining * pace
        if name == "plain" and run.plain_seconds is not None:
            time_left = min(time_left, max(0.0, run.plain_seconds - track.total_seconds))
        total += time_left
    return total


def tokens_per_second(run: Run, track: Track) -> float:
    return run.settings.batch * run.settings.model.sequence / median(track.seconds)


def agreement(run: Run) -> list[dict[str, Any]]:
    """How far fulgurite's loss curve is from each of the others, and how far it may be."""
    tracks = run.tracks
    if "fulgurite" not in tracks:
        return []
    rows: list[dict[str, Any]] = []
    for name, track in tracks.items():
        if name == "fulgurite":
            continue
        steps = min(len(track.steps), len(tracks["fulgurite"].steps))
        rows.append(
            {
                "with": name,
                "steps": steps,
                "distance": curve_distance(tracks["fulgurite"].losses, track.losses),
                "bound": curve_bound(run.settings.precision, steps),
            }
        )
    return rows


def kernels() -> list[dict[str, Any]]:
    """Kernels that ran in this process; none if the module that counts them is not built."""
    if fulgurite._C is None:
        return []
    return [
        {"name": row["name"], "variant": row["ran"], "calls": row["calls"]}
        for row in fulgurite._C.kernel_table()
        if row["calls"] > 0
    ]


def summary(run: Run) -> dict[str, Any]:
    """Everything that the table shows, as plain values."""
    held_out = run.held_out_losses()
    arms = {}
    for name, track in run.tracks.items():
        arms[name] = {
            "precision": track.arm.precision,
            "steps": len(track.steps),
            "step_seconds": median(track.seconds),
            "tokens_per_second": tokens_per_second(run, track),
            "peak_bytes": track.peak_bytes,
            "train_loss": sum(track.losses[-10:]) / len(track.losses[-10:]),
            "held_out_loss": held_out[name],
            "skipped": track.skipped,
            "losses": track.losses,
        }
    both = "plain" in run.tracks and "fulgurite" in run.tracks
    ratio = paired_ratio(run.tracks["plain"], run.tracks["fulgurite"]) if both else None
    return {
        "precision": run.settings.precision,
        "threads": torch.get_num_threads(),
        "parameters": sum(
            parameter.numel()
            for parameter in next(iter(run.tracks.values())).arm.model.parameters()
        ),
        "tokens_per_step": run.settings.batch * run.settings.model.sequence,
        "ratio": ratio,
        "arms": arms,
        "agreement": agreement(run),
        "kernels": kernels(),
    }


def arms_table(result: dict[str, Any]) -> Table:
    """One column per arm."""
    arms = result["arms"]
    table = Table(
        title=f"{result['parameters'] / 1e6:.1f} M parameters, "
        f"{result['tokens_per_step']} tokens a step, {result['threads']} threads"
    )
    table.add_column("")
    for name, arm in arms.items():
        table.add_column(f"{TITLES[name]}\n{arm['precision']}", justify="right")
    columns = arms.values()
    table.add_row("steps", *(str(arm["steps"]) for arm in columns))
    table.add_row("time per step", *(f"{arm['step_seconds'] * 1e3:.0f} ms" for arm in columns))
    table.add_row("tokens/s", *(f"{arm['tokens_per_second']:,.0f}" for arm in columns))
    if result["ratio"] is not None:
        marks = {"fulgurite": f"{result['ratio']:.2f}x", "plain": "1x"}
        table.add_row("speed, paired steps", *(marks.get(name, "") for name in arms))
    peaks = (f"{arm['peak_bytes'] / 2**20:.0f} MiB" for arm in columns)
    table.add_row("peak memory, fwd + bwd", *peaks)
    table.add_row("train loss, last 10 steps", *(f"{arm['train_loss']:.4f}" for arm in columns))
    table.add_row("held-out loss", *(f"{arm['held_out_loss']:.4f}" for arm in columns))
    table.add_row("skipped steps", *(str(arm["skipped"]) for arm in columns))
    return table


def kernels_table(result: dict[str, Any]) -> Table:
    table = Table(title="kernels that ran")
    for heading in ("kernel", "instruction set", "calls"):
        table.add_column(heading, justify="right" if heading == "calls" else "left")
    for row in result["kernels"]:
        table.add_row(row["name"], row["variant"], f"{row['calls']:,}")
    return table


def draw(result: dict[str, Any], path: Path) -> None:
    """The loss curves, as a PNG."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for name, arm in result["arms"].items():
        label = f"{TITLES[name]}, {arm['precision']} (held out {arm['held_out_loss']:.3f})"
        steps = range(1, arm["steps"] + 1)
        axes.plot(steps, arm["losses"], label=label, **STYLES[name])
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def sample(run: Run) -> tuple[str, str]:
    """A held-out prompt and how the first arm's model goes on, in float32."""
    prompt = run.corpus.held_out[:PROMPT_BYTES]
    model = next(iter(run.tracks.values())).arm.model.eval()
    length = min(SAMPLE_BYTES, run.settings.model.sequence - len(prompt))
    tokens = generate(model, prompt, length, temperature=0.8, seed=run.settings.seed)
    model.train()
    return readable(prompt), readable(tokens)


def readable(tokens: torch.Tensor) -> str:
    return bytes(tokens.tolist()).decode("utf-8", errors="replace")


def finish(run: Run, folder: Path, console: Console) -> None:
    """Evaluate, then show and write everything."""
    result = summary(run)
    prompt, continuation = sample(run)
    console.print(arms_table(result))
    for row in result["agreement"]:
        verdict = "within" if row["distance"] <= row["bound"] else "OUTSIDE"
        console.print(
            f"loss curves of fulgurite and {TITLES[row['with']]}: mean difference "
            f"{row['distance']:.4f} over {row['steps']} steps, {verdict} the bound "
            f"of {row['bound']:.4f}",
            soft_wrap=True,
        )
    if result["kernels"]:
        console.print(kernels_table(result))
    console.print("[bold]sample[/bold] (prompt dimmed):")
    console.print(Text(prompt, style="dim") + Text(continuation))
    draw(result, folder / "loss.png")
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    console.print(f"wrote {folder / 'loss.png'} and {folder / 'result.json'}", soft_wrap=True)
