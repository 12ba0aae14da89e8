"""The README's chart, from the committed results: ``python docs/charts.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
MACHINE = "zen5-avx512bf16"
TITLE = "AMD EPYC (Zen 5), 2 threads, torch 2.13: milliseconds, quartiles of paired runs"

# (family, work, shape) of a row of the results, and what it is beside what.
ROWS = {
    ("attention", "float32 backward, causal", "B1 H8 S1024 D64"): (
        "Attention backward, causal, float32",
        "scaled_dot_product_attention",
    ),
    ("attention", "bfloat16 forward, 16 documents, causal", "T4096 H8 D64"): (
        "16 packed documents, bfloat16",
        "SDPA with a dense mask",
    ),
    ("attention", "bfloat16 decode, GQA 4", "B1 H32/8 M4096 D128"): (
        "Decoding from a cache of 4,096, bfloat16",
        "SDPA, enable_gqa",
    ),
    ("moe", "experts bfloat16, forward + backward", "T1024 H1024 I512 E64 k8"): (
        "64 experts, top 8, and backward, bfloat16",
        "grouped_mm experts",
    ),
    ("optim", "bf16 parameters and gradients, float32 masters", "32 × 1048576"): (
        "Unscale, clip, AdamW, bfloat16 weights",
        "GradScaler, clip_grad_norm_, fused",
    ),
}


def result(family: str, work: str, shape: str) -> dict[str, Any]:
    rows = json.loads((ROOT / f"benchmarks/results/{MACHINE}/{family}.json").read_text())["rows"]
    (row,) = (row for row in rows if (row["work"], row["shape"]) == (work, shape))
    found: dict[str, Any] = row
    return found


def draw(path: Path) -> None:
    rows = [result(*key) for key in ROWS]
    labels = [f"{what}\nbeside {baseline}" for what, baseline in ROWS.values()]
    ours = [row["ours_ms"] for row in rows]
    plain = [row["plain_ms"] for row in rows]
    quartiles = [
        [abs(row["ours_ms"] * row[name] - row["plain_ms"]) for row in rows]
        for name in ("ratio_low", "ratio_high")
    ]
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    height = 0.36
    above, below = ([at + side * height / 2 for at in range(len(rows))] for side in (-1, 1))
    axes.barh(above, ours, height, color="#2a6f97", label="fulgurite")
    bars = {"color": "#c9c9c9", "ecolor": "#555555", "capsize": 3, "label": "plain PyTorch"}
    axes.barh(below, plain, height, xerr=quartiles, **bars)
    for at, row in enumerate(rows):
        theirs = f"{row['plain_ms']:.3g}   {row['ratio']:.1f}×"
        axes.text(row["ours_ms"] * 1.1, above[at], f"{row['ours_ms']:.3g}", va="center", size=8)
        axes.text(row["plain_ms"] * 1.3, below[at], theirs, va="center", size=8)
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 2)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(TITLE, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    draw(ROOT / "docs/_static/readme.png")
