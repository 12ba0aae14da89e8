"""Small multiples: ratios by work and machine, losses of the demo."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, geometric_mean
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLUMNS = 2
WIDTH = 8.2
TITLE_WIDTH = 58  # characters
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fulgurite",  # the same results give the same file
}
COLOURS = plt.get_cmap("tab10").colors
ARMS: dict[str, dict[str, Any]] = {
    "fulgurite": {"label": "fulgurite", "color": "tab:blue", "linewidth": 1.4},
    "plain": {"label": "plain PyTorch", "color": "tab:orange", "linestyle": (0, (3, 2))},
    "reference": {"label": "fulgurite, float32", "color": "black", "linestyle": ":"},
}
SMOOTHED = 10  # steps that one point of a curve is the mean of


def digits(number: float) -> str:
    """Three digits that count."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def panels(count: int, height: float) -> tuple[Any, list[Axes]]:
    rows = -(-count // COLUMNS)
    figure, grid = plt.subplots(
        rows, COLUMNS, figsize=(WIDTH, height * rows), layout="constrained", squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    axes = [axis for row in grid for axis in row]
    for unused in axes[count:]:
        unused.set_visible(False)
        axes[axes.index(unused) - COLUMNS].tick_params(labelbottom=True)
    return figure, axes[:count]


def ratio_panel(axis: Axes, cases: dict[Any, Any], machines: list[str]) -> None:
    """A row for each machine that has the work: a dot for each size, the mean as a number."""
    axis.axvline(1.0, color="black", linewidth=0.8)
    for at, name in enumerate(machines):
        rows = [found[name] for found in cases.values() if name in found]
        if not rows:
            continue
        ratios = [row["ratio"] for row in rows]
        colour = COLOURS[at % len(COLOURS)]
        for row in rows:
            quartiles = [row["ratio_low"], row["ratio_high"]]
            axis.plot(quartiles, [at, at], color=colour, linewidth=3, alpha=0.35)
        axis.plot(ratios, [at] * len(ratios), "o", color=colour, markersize=3.5)
        axis.annotate(
            digits(geometric_mean(ratios)), (1, at), xycoords=("axes fraction", "data"),
            xytext=(2, 0), textcoords="offset points", va="center", color=colour,
        )  # fmt: skip
    axis.set_yticks(range(len(machines)), machines)
    axis.set_ylim(len(machines) - 0.4, -0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)


def beside_one(works: dict[str, dict[Any, Any]]) -> dict[str, dict[Any, Any]]:
    """The cases of each work and baseline, under a title that names both."""
    titled: dict[str, dict[Any, Any]] = {}
    for work, cases in works.items():
        for (shape, baseline), found in cases.items():
            title = "\n".join(fill(text, TITLE_WIDTH) for text in (work, f"beside {baseline}"))
            titled.setdefault(title, {})[shape] = found
    return titled


def ratio_chart(works: dict[str, dict[Any, Any]], machines: list[str], path: Path) -> None:
    """A panel for each work and baseline, all on one scale: the other side's time by ours."""
    titled = beside_one(works)
    with plt.rc_context(STYLE):
        figure, axes = panels(len(titled), 0.7 + 0.17 * len(machines))
        for axis, (title, cases) in zip(axes, titled.items(), strict=True):
            ratio_panel(axis, cases, machines)
            axis.set_title(title)
        figure.supxlabel(
            "time of the other side / time of fulgurite: right of 1 fulgurite is faster. A dot is\n"
            "one size, its bar the quartiles of paired runs, the number their geometric mean",
            fontsize=8,
        )
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def smoothed(losses: list[float]) -> list[float]:
    return [fmean(losses[i : i + SMOOTHED]) for i in range(0, len(losses), SMOOTHED)]


def demo_chart(precisions: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each machine and precision: the losses of every arm."""
    files = [(p, m, c) for p, results in precisions.items() for m, c in results.items()]
    with plt.rc_context(STYLE):
        figure, axes = panels(len(files), 2.0)
        for axis, (precision, machine, content) in zip(axes, files, strict=True):
            for arm, run in content["arms"].items():
                means = smoothed(run["losses"])
                steps = [SMOOTHED * (i + 1) for i in range(len(means))]
                axis.plot(steps, means, marker=".", markersize=2.5, **ARMS[arm])
            axis.set_title(f"{machine}, {precision}")
            axis.set_ylabel("nats per byte")
        axes[0].legend(frameon=False)
        figure.supxlabel(f"step; a point is the mean loss of {SMOOTHED} steps", fontsize=8)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
