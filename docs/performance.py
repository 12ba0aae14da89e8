"""The pages of docs/performance/generated, from benchmarks/results: ``python docs/performance.py``.

``docs/conf.py`` calls ``write`` before Sphinx looks for pages. They are not committed: a new file
of results is a new column, or a new page.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from performance_charts import demo_chart, digits, ratio_chart

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
GENERATED = ROOT / "docs/performance/generated"
TITLES = {
    "attention": "Attention",
    "moe": "Mixture of experts",
    "optim": "Optimizer and loss scaling",
    "linear": "Convolutions, scans, linear attention",
    "norm": "Norms",
    "clients": "Models of other libraries",
    "demo": "The demo: a language model",
}
ROW = (
    "Bold: the other side's time divided by ours. Below it our time, and ours as a share of what "
    "the machine could do at that moment, where that was measured."
)
MEMORY = (
    "MiB beside results, of fulgurite and of the other side: the peak of what torch's allocator "
    "gives out, and below it how much a process of its own grows."
)
DEMO = "demo-"  # demo-PRECISION.json: one page for all precisions

Results = dict[str, dict[str, Any]]  # by machine: the folder's name


def load() -> dict[str, Results]:
    """Every file of the results, by family and machine."""
    families: dict[str, Results] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        content = json.loads(path.read_text())
        if "rows" not in content and "arms" not in content:
            raise ValueError(f"{path}: expected rows of the benchmark or arms of the demo")
        content["measured"], content["commit"] = _when(path, content)
        families.setdefault(path.stem, {})[path.parent.name] = content
    return families


def _when(path: Path, content: dict[str, Any]) -> tuple[str, str]:
    """Day and commit of a measurement; of files that do not say, of their last commit."""
    if content.get("date"):
        return content["date"][:10], content.get("commit") or ""
    command = ["git", "-C", str(path.parent), "log", "-1", "--format=%cs %h", "--", path.name]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    day, _, commit = ran.stdout.strip().partition(" ")
    return (f"by {day}", f"by {commit}") if commit else ("not recorded", "not recorded")


def table(columns: list[str], rows: Iterable[list[str]], numbers_from: int) -> list[str]:
    """A table; the columns from ``numbers_from`` on are set to the right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(columns))]
    return [*(f"| {' | '.join(row)} |" for row in [columns, rule, *rows]), ""]


def machines_table(results: Results) -> list[str]:
    columns = ["results", "processor", "set", "threads", "torch", "measured", "commit"]
    rows = []
    for name, content in results.items():
        facts = content.get("machine", {})
        said = [str(facts.get(key, "")) for key in ("cpu", "isa", "threads", "torch")]
        rows.append([*map(whole, [name, *said, content["measured"], content["commit"]])])
    notes = [f"`{m}`: {content['note']}.\n" for m, content in results.items() if "note" in content]
    return table(columns, rows, len(columns)) + notes


def by_work(results: Results, key: str) -> dict[str, dict[tuple[str, str], Results]]:
    """Rows by work, then by shape and baseline, then by machine, in order of appearance."""
    works: dict[str, dict[tuple[str, str], Results]] = {}
    for machine, content in results.items():
        for row in content.get(key, []):
            cases = works.setdefault(row["work"], {})
            cases.setdefault((row["shape"], row["baseline"]), {})[machine] = row
    return works


def whole(text: str) -> str:
    """The text in one line: no break at spaces and hyphens."""
    return text.replace(" ", "\u00a0").replace("-", "\u2011")


def ratio_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    share = f", {100 * row['share']:.0f} %" if row.get("share") else ""
    return f"**{digits(row['ratio'])}**<br>" + whole(f"{digits(row['ours_ms'])} ms{share}")


def memory_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    peak = f"{row['ours_mib']:.1f}, {row['plain_mib']:.1f}"
    growth = f"{row['ours_growth_mib']:.1f}, {row['plain_growth_mib']:.1f}"
    return f"{whole(peak)}<br>{whole(growth)}"


def parts_section(works: dict[str, dict[tuple[str, str], Results]]) -> list[str]:
    """Where the time of each side goes, of the rows that say it."""
    rows = []
    for work, cases in works.items():
        for (shape, baseline), found in cases.items():
            for machine, row in found.items():
                for side, parts in row.get("parts", {}).items():
                    name = "fulgurite" if side == "ours" else baseline
                    shown = ", ".join(f"{part} {100 * f:.0f} %" for part, f in parts.items() if f)
                    rows.append([work, whole(shape), whole(machine), name, shown])
    if not rows:
        return []
    columns = ["work", "sizes", "machine", "side", "of its time"]
    return ["## Where the time goes", "", *table(columns, rows, len(columns))]


def family_page(family: str, results: Results) -> str:
    machines = list(results)
    works = by_work(results, "rows")
    lines = [f"# {TITLES.get(family, family)}", "", *machines_table(results)]
    lines += [f"![Ratios by work and machine]({family}.svg)", "", "## Every row", "", ROW, ""]
    for work, cases in works.items():
        lines += [f"**{work}**", ""]
        rows = [
            [whole(shape), baseline, *(ratio_cell(found.get(machine)) for machine in machines)]
            for (shape, baseline), found in cases.items()
        ]
        lines += table(["sizes", "beside", *map(whole, machines)], rows, 2)
    lines += parts_section(works)
    memory = by_work(results, "memory")
    if memory:
        measured = [m for m in machines if results[m].get("memory")]
        rows = [
            [
                work,
                whole(shape),
                baseline,
                *(memory_cell(found.get(machine)) for machine in measured),
            ]
            for work, cases in memory.items()
            for (shape, baseline), found in cases.items()
        ]
        lines += ["## Memory", "", MEMORY, ""]
        lines += table(["work", "sizes", "beside", *map(whole, measured)], rows, 3)
    return "\n".join(lines) + "\n"


def demo_page(precisions: dict[str, Results]) -> str:
    files = {
        f"{machine}, {precision}": content
        for precision, results in precisions.items()
        for machine, content in results.items()
    }
    rows = []
    for name, content in files.items():
        ours, plain = content["arms"]["fulgurite"], content["arms"]["plain"]
        against = content["agreement"][0]
        rows.append([
            whole(name),
            f"{digits(1e3 * ours['step_seconds'])} ms",
            f"{digits(1e3 * plain['step_seconds'])} ms",
            f"**{content['ratio']:.2f}**",
            f"{ours['peak_bytes'] / 2**20:.0f} against {plain['peak_bytes'] / 2**20:.0f} MiB",
            f"{against['distance']:.4f} over {against['steps']} steps",
            whole(content["measured"]),
        ])  # fmt: skip
    first = next(iter(files.values()))
    columns = ["machine", "fulgurite", "plain", "ratio", "peak", "losses differ", "measured"]
    lines = [
        f"# {TITLES['demo']}",
        "",
        f"What `python -m fulgurite.demo` measured: {first['parameters'] / 1e6:.1f} million "
        f"parameters, {first['tokens_per_step']} tokens a step, {first['threads']} threads, the "
        "same weights and batches on both sides, steps interleaved. Plain PyTorch is "
        "scaled_dot_product_attention, grouped_mm experts, fused AdamW, autocast.",
        "",
        *table(columns, rows, 1),
        "Peak is that of forward and backward. The losses' mean difference is in nats per byte; "
        "the bound on it: [benchmarks](../../internals/benchmarks.md#the-demo-s-curves).",
        "",
        "![Training losses](demo.svg)",
    ]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Every page and chart, anew."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir(parents=True)
    families = load()
    demos = {f.removeprefix(DEMO): r for f, r in families.items() if f.startswith(DEMO)}
    for family, results in families.items():
        if family.startswith(DEMO):
            continue
        (GENERATED / f"{family}.md").write_text(family_page(family, results))
        ratio_chart(by_work(results, "rows"), list(results), GENERATED / f"{family}.svg")
    if demos:
        (GENERATED / "demo.md").write_text(demo_page(demos))
        demo_chart(demos, GENERATED / "demo.svg")


if __name__ == "__main__":
    write()
