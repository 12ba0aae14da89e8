"""Short runs of both arms: the same curves, continued bit for bit, overflow skipped and told."""

import io
import itertools
import json
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fulgurite.demo import checkpoint, report
from fulgurite.demo.arms import WARMUP_STEPS, build_arm, learning_rate
from fulgurite.demo.cli import main
from fulgurite.demo.data import Corpus, read_text
from fulgurite.demo.model import QUICK, LanguageModel, initialise
from fulgurite.demo.plain import build_plain, plain_state
from fulgurite.demo.train import (
    Run,
    Settings,
    curve_bound,
    curve_distance,
    plan_steps,
)
from fulgurite.testing.backend import Backend

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_bytes(read_text(None)[: 1 << 20], QUICK.sequence, "text")


def never() -> bool:
    return False


def trained(settings: Settings, corpus: Corpus) -> Run:
    run = Run(settings, corpus)
    for _ in run.train(never):
        pass
    return run


def assert_equal_runs(first: Run, second: Run) -> None:
    """Equal bits: curves, weights, buffers, optimizer states."""
    for name, track in first.tracks.items():
        other = second.tracks[name]
        assert track.losses == other.losses
        torch.testing.assert_close(
            track.arm.model.state_dict(), other.arm.model.state_dict(), rtol=0, atol=0
        )
        torch.testing.assert_close(
            track.arm.training_state(), other.arm.training_state(), rtol=0, atol=0
        )


def test_arms_start_as_the_same_function() -> None:
    model, plain = LanguageModel(QUICK), build_plain(QUICK)
    initialise(model, 3)
    plain.load_state_dict(plain_state(model.state_dict(), QUICK.experts))
    tokens = torch.randint(256, (2, QUICK.sequence), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(model.moe_layers(), plain.moe_layers(), strict=True):
        torch.testing.assert_close(ours.aux_loss, theirs.aux_loss)
        assert torch.equal(ours.load, theirs.load)


def test_the_default_is_what_the_kernels_multiply(backend: Backend) -> None:
    expected = "bf16" if backend.set in ("avx512_bf16", "amx") else "fp32"
    assert Settings().precision == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_curves_agree(precision: str, corpus: Corpus) -> None:
    run = trained(Settings(precision=precision, steps=12, quick=True), corpus)
    ours, theirs = run.tracks["fulgurite"], run.tracks["plain"]
    assert len(ours.steps) == len(theirs.steps) == 12
    assert ours.losses[-1] < ours.losses[0] - 0.5
    assert curve_distance(ours.losses, theirs.losses) < curve_bound(precision, 12)
    for bias in (layer.selection_bias for layer in ours.arm.model.moe_layers()):
        assert bias.abs().max() > 0


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/demo-*.json")), ids=lambda p: p.parent.name)
def test_recorded_curves_are_within_the_bound(path: Path) -> None:
    """However many of their steps are looked at."""
    result = json.loads(path.read_text())
    ours, *others = (arm["losses"] for arm in result["arms"].values())
    for other in others:
        for steps in range(1, min(len(ours), len(other)) + 1):
            distance = curve_distance(ours[:steps], other[:steps])
            assert distance <= curve_bound(result["precision"], steps), steps


def test_the_bound_grows_with_the_steps() -> None:
    assert curve_bound("fp32", 12) == pytest.approx(0.0022)
    assert curve_bound("fp32", 60) < curve_bound("bf16", 60) < curve_bound("bf16", 100)
    assert curve_bound("fp32", 10**6) == curve_bound("bf16", 10**6) == 0.03
    assert curve_bound("fp16", 1) == curve_bound("fp16", 300)


def test_continued_run_has_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    settings = Settings(steps=4, quick=True)
    whole = trained(settings, corpus)

    begun = Run(settings, corpus)
    events = itertools.islice(begun.train(never), 3)  # stops between the arms of step 2
    assert len(list(events)) == 3
    assert sorted(len(track.steps) for track in begun.tracks.values()) == [1, 2]
    checkpoint.save(begun, tmp_path)

    newest, state = checkpoint.read_run(tmp_path)
    continued = Run(settings, corpus)
    checkpoint.load(continued, newest, state)
    for _ in continued.train(never):
        pass
    assert_equal_runs(whole, continued)


def test_interrupted_by_a_signal_then_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--steps", "4", "--precision", "fp32", "--arms", "fulgurite"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*options, "--out", str(whole)]) == 0

    show = report.Reporter.show

    def show_and_interrupt(self: report.Reporter, name: str, step: object) -> None:
        show(self, name, step)
        if self.run.step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(report.Reporter, "show", show_and_interrupt)
        assert main([*options, "--out", str(parts)]) == 128 + signal.SIGINT
    assert "interrupted after step 2" in capsys.readouterr().out
    assert [path.name for path in checkpoint.found(parts)] == ["checkpoint-000002"]
    assert not (parts / "result.json").exists()

    assert main(["--resume", "--out", str(parts)]) == 0
    name = "checkpoint-000004/fulgurite.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    curves = [
        json.loads((folder / "result.json").read_text())["arms"]["fulgurite"]["losses"]
        for folder in (whole, parts)
    ]
    assert curves[0] == curves[1]


def test_forced_overflow_is_skipped_and_told(corpus: Corpus) -> None:
    run = Run(Settings(precision="fp16", steps=3, overflow_step=2, quick=True), corpus)
    console = Console(file=io.StringIO(), width=200)
    with report.Reporter(run, console) as reporter:
        for name, step in run.train(never):
            reporter.show(name, step)
    log = console.file.getvalue()
    assert "step 2, fulgurite: skipped, overflow first in " in log
    assert "loss scale 65536 to 32768" in log
    assert "step 2, plain PyTorch: skipped" in log
    skips = {name: [step.skipped for step in track.steps] for name, track in run.tracks.items()}
    assert skips["fulgurite"] == [False, True, False]
    assert skips["plain"] == [False, True, False][: len(skips["plain"])]
    assert skips["reference"] == [False, False, False]


def test_skipped_step_changes_no_weight(corpus: Corpus) -> None:
    arm = build_arm("fulgurite", QUICK, "fp16", 0)
    tokens = corpus.batch(1, 1, QUICK.sequence, 0)
    before = {name: value.clone() for name, value in arm.model.named_parameters()}
    step = arm.train_step(tokens, 1e-3, overflow=True)
    assert step.skipped
    for name, value in arm.model.named_parameters():
        assert torch.equal(value, before[name]), name
    assert not arm.train_step(tokens, 1e-3).skipped
    assert not torch.equal(arm.model.head.weight, before["head.weight"])


def test_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--steps", "2", "--precision", "fp32", "--out", str(tmp_path)]
    assert main(options) == 0
    shown = capsys.readouterr().out
    for words in ("tokens/s", "peak memory", "held-out loss", "skipped steps", "sample"):
        assert words in shown
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["arms"]) == {"fulgurite", "plain"}
    assert result["ratio"] > 0
    for arm in result["arms"].values():
        assert arm["steps"] == len(arm["losses"]) == 2
        assert 1 << 20 < arm["peak_bytes"] < 1 << 30
        assert 0 < arm["held_out_loss"] < 8
    [agreement] = result["agreement"]
    assert agreement["distance"] <= agreement["bound"]


def test_learning_rate() -> None:
    rates = [learning_rate(step, 60) for step in range(1, 61)]
    assert rates.index(max(rates)) == WARMUP_STEPS - 1
    assert rates[-1] == pytest.approx(0.1 * max(rates))
    assert rates[WARMUP_STEPS:] == sorted(rates[WARMUP_STEPS:], reverse=True)
    assert learning_rate(WARMUP_STEPS, None) == max(rates)
    with pytest.raises(ValueError, match="must be known"):
        learning_rate(WARMUP_STEPS + 1, None)


def test_plan_steps() -> None:
    assert plan_steps(100.0, None, {"fulgurite": 0.25, "plain": 0.75}) == 100
    assert plan_steps(100.0, 40.0, {"fulgurite": 0.25, "plain": 9.0, "reference": 0.25}) == 120


def test_slow_plain_arm_is_cut_and_a_reference_joins(corpus: Corpus) -> None:
    settings = Settings(precision="fp32", quick=True)
    run = Run(settings, corpus)
    for name, _ in run.train(lambda: run.steps is not None):
        if name == "plain":  # pretend
            track = run.tracks["plain"]
            slow = track.steps[-1].__class__(track.losses[-1], 1.5, False)
            track.steps[-1] = slow
    assert run.plain_seconds == settings.plain_seconds
    assert len(run.tracks["reference"].steps) == len(run.tracks["fulgurite"].steps)
    assert run.steps is not None
    assert run.steps > run.step
