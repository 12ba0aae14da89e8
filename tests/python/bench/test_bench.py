"""The benchmarks' own arithmetic, and one quick run of a family."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fulgurite.bench import peak
from fulgurite.bench.__main__ import main
from fulgurite.bench.experts import Block, Work, eager, grouped
from fulgurite.bench.growth import grown_mib
from fulgurite.bench.harness import Case, MemoryCase, measure, peak_mib
from fulgurite.bench.parts import parts


def test_a_row_is_the_ratio_of_neighbours() -> None:
    row = measure(
        Case("wait", "", "longer", lambda: time.sleep(0.002), lambda: time.sleep(0.006)),
        seconds=0.1,
    )
    assert row.pairs >= 7
    assert 2 < row.ratio < 3.5
    assert row.ratio_low <= row.ratio <= row.ratio_high
    assert row.share == 0


def test_waiting_takes_no_processor() -> None:
    a = torch.randn(512, 512)
    wait, multiply = (lambda: time.sleep(0.05)), (lambda: a @ a)
    assert measure(Case("", "", "", wait, multiply), seconds=0.1).cpu_ratio > 1


def test_sides_apart() -> None:
    order: list[int] = []
    case = Case("", "", "", lambda: order.append(0), lambda: order.append(1), least=2, apart=True)
    assert measure(case).pairs == 2
    assert order == sorted(order)


def test_memory_is_without_results() -> None:
    case = MemoryCase("", "", "", lambda: torch.empty(3 << 18), lambda: None, kept=1 << 20)
    assert peak_mib(case, case.ours) == 2.0


def test_a_process_grows_by_what_attention_keeps() -> None:
    """Scores of all pairs would be 16 MiB."""
    assert abs(grown_mib("attention", 0, "ours", quick=True)) < 12


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "product_rate", lambda: 0.0)  # on a busy machine now and then above
    a, b = torch.randn(2, 1024, 1024)
    offsets = torch.tensor([0, 1024])

    def multiply() -> None:
        torch.ops.fulgurite.moe_grouped_mm(a, b[None], offsets)

    product = Case("", "", "", multiply, multiply, operations=2.0 * 1024**3)
    assert 0.02 < measure(product, seconds=0.1).share <= 1
    numbers = torch.randn(16 << 20)
    read = Case("", "", "", numbers.sum, numbers.sum, bytes_read=4.0 * numbers.numel())
    assert 0.2 < measure(read, seconds=0.1).share < 5
    assert peak.read_bandwidth() > 1e8


def test_both_plain_ways_of_the_experts_agree() -> None:
    work = Work(Block(24, 32, 16, 8, 2, torch.float32))
    results = []
    for experts in (torch.ops.fulgurite.moe_experts, grouped, eager):
        out = work.result(experts)
        results.append([out, *torch.autograd.grad(out, work.leaves, work.grad)])
    for plain in results[1:]:
        torch.testing.assert_close(plain, results[0], rtol=1e-4, atol=1e-4)


def test_parts_of_a_training_step_follow_its_layers() -> None:
    """The backward of a layer is the layer's, however long after."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.norm = nn.Linear(512, 512), nn.LayerNorm(512)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.project(x)).exp().sum()

    model, x = Model(), torch.randn(2048, 512)
    found = parts(lambda: model(x).backward(), model)
    assert set(found) == {"projections", "norms", "rest"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["projections"] > found["norms"]
    without_backward = parts(lambda: model(x), model)
    assert set(without_backward) == set(found)


@pytest.mark.parametrize("family", ["attention", "moe", "optim", "linear", "norm", "clients"])
def test_a_quick_run_leaves_its_rows(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([family, "--quick", "--seconds", "0", "--out", str(tmp_path)]) == 0
    assert "geometric mean" in capsys.readouterr().out
    content = json.loads((tmp_path / f"{family}.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert all(row["ratio"] > 0 and row["pairs"] >= 3 for row in content["rows"])
    assert all(row["ours_mib"] > 0 for row in content["memory"])
    assert (tmp_path / f"{family}.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_family_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convolution"])
    families = "attention, moe, optim, linear, norm, clients"
    assert f"expected a family of {families}" in capsys.readouterr().err
