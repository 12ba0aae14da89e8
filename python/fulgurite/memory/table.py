"""The report as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fulgurite.memory.recipes import Recipe
from fulgurite.memory.usage import GB, Usage

if TYPE_CHECKING:
    from rich.table import Table

Rows = list[tuple[Recipe, Usage]]
_COLORS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#bbbbbb", "#ee6677")


def rows_of(recipes: list[Recipe], sizes: list[int]) -> Rows:
    return [(recipe, recipe.usage(sizes)) for recipe in recipes]


def table(rows: Rows, sizes: list[int], working: dict[str, int]) -> Table:
    """A row per recipe, in decimal gigabytes; ``working`` is what a step adds to each."""
    from rich.table import Table

    parameters = sum(sizes)
    result = Table(title=f"{parameters / 1e9:.4g} B parameters, GB (10⁹ bytes)")
    result.add_column("recipe")
    names = [*Usage().parts(), *working]
    for name in [*names, "total", "bytes/param"]:
        result.add_column(name, justify="right")
    result.add_column("", style="dim")
    for recipe, usage in rows:
        values = [*usage.parts().values(), *working.values()]
        result.add_row(
            recipe.name,
            *(f"{value / GB:.1f}" for value in [*values, sum(values)]),
            f"{usage.total / parameters:.2f}",
            recipe.words,
        )
    return result


def draw(rows: Rows, sizes: list[int], working: dict[str, int], path: Path) -> None:
    """Stacked bars, one per recipe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.6), layout="constrained")
    left = [0.0] * len(rows)
    for i, name in enumerate([*Usage().parts(), *working]):
        widths = [(usage.parts() | working)[name] / GB for _, usage in rows]
        if not any(width > 1e-3 * sum(sizes) / GB for width in widths):
            continue
        axes.barh(range(len(rows)), widths, left=left, label=name, color=_COLORS[i % len(_COLORS)])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for position, total in enumerate(left):
        axes.annotate(
            f" {total:.0f} GB" if total >= 10 else f" {total:.2f} GB",
            (total, position),
            va="center",
        )
    axes.set_yticks(range(len(rows)), [recipe.words for recipe, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(right=1.15 * max(left))
    axes.set_xlabel("GB (10⁹ bytes)")
    axes.set_title(f"Training {sum(sizes) / 1e9:.4g} B parameters")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
