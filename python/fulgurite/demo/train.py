"""The training run: arms side by side on the same batches, and how many steps they get.

Every step trains the arms one after the other, in turn first, so that both meet the same state of
the machine; the median of the per-step time ratios is then free of its drift.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from fulgurite._config import explain
from fulgurite.demo.arms import Arm, Step, build_arm, learning_rate
from fulgurite.demo.data import Corpus
from fulgurite.demo.model import QUICK, ModelConfig

PLANNED_AFTER = 5  # steps, or the second one past a sixth of the time; the shortest then count
ENOUGH_STEPS = 100  # fewer than these in the time, and the plain arm is cut short
HELD_OUT_SEQUENCES = 16

# Mean absolute difference of two loss curves, nats per byte, over the steps both ran: at most
# least + each · steps, never more than most. Rounding flips the choice of an expert now and then,
# and training magnifies it, so curves drift apart though each is right. Measured on the whole
# model, mean / steps at its largest: float32 5.0e-5 (0.0131 over 300 steps, 0.0081 over 259 on
# another machine), bfloat16 1.6e-4 (0.0162 over 100). Twice that, until the curves are as far apart
# as any two: in bfloat16 0.017 at 130 steps and 0.021 at 300. float16 skips a step of the warm-up
# that float32 does not: 0.0175 over 60 steps of the quick model, from the beginning.
CURVE_BOUNDS = {
    "fp32": (0.001, 1e-4, 0.03),
    "bf16": (0.001, 3e-4, 0.03),
    "fp16": (0.05, 0.0, 0.05),
}


def curve_bound(precision: str, steps: int) -> float:
    """How far two loss curves of this many steps may be apart on average, nats per byte."""
    least, each, most = CURVE_BOUNDS[precision]
    return min(most, least + each * steps)


def default_precision() -> str:
    """bf16 where kernels multiply bfloat16 as it is. Elsewhere operands become float32 first, and
    float32 itself is faster: fp32."""
    ran = []
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.zeros(1, 1, 1, 8, dtype=dtype)
        ran.append(explain("attention", x, x, x)[0]["isa"])
    return "bf16" if ran[0] != ran[1] else "fp32"


@dataclass(frozen=True)
class Settings:
    """What defines a run; two runs with equal settings and numbers of steps train the same bits."""

    precision: str = field(default_factory=default_precision)
    arms: tuple[str, ...] = ("fulgurite", "plain")
    steps: int | None = None  # None: as many as fit in the time
    batch: int = 2
    seed: int = 0
    overflow_step: int = 0  # of which gradients overflow on purpose, in fp16; 0 for none
    quick: bool = False
    text: str | None = None

    @property
    def model(self) -> ModelConfig:
        return QUICK if self.quick else ModelConfig()

    @property
    def seconds(self) -> float:
        """Time for the training steps; starting up, evaluation and the sample come on top."""
        return 20.0 if self.quick else 200.0

    @property
    def plain_seconds(self) -> float:
        """Time for a plain arm that is too slow to run all steps."""
        return 8.0 if self.quick else 60.0

    @property
    def max_steps(self) -> int:
        return 60 if self.quick else 300


@dataclass
class Track:
    """One arm of a run and what it has done so far."""

    arm: Arm
    limit: int | None = None  # on its steps; None while only the run's own applies
    steps: list[Step] = field(default_factory=list)
    peak_bytes: int | None = None
    warm_up_seconds: float = 0.0

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]

    @property
    def seconds(self) -> list[float]:
        """Times of the steps, without the first, which creates the optimizer's state."""
        return [step.seconds for step in self.steps[1:] or self.steps]

    @property
    def total_seconds(self) -> float:
        return self.warm_up_seconds + sum(step.seconds for step in self.steps)

    @property
    def skipped(self) -> int:
        return sum(step.skipped for step in self.steps)

    def state(self) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "peak_bytes": self.peak_bytes,
            "warm_up_seconds": self.warm_up_seconds,
            "steps": [asdict(step) for step in self.steps],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.limit = state["limit"]
        self.peak_bytes = state["peak_bytes"]
        self.warm_up_seconds = state["warm_up_seconds"]
        self.steps = [Step(**step) for step in state["steps"]]


def plan_steps(seconds: float, plain_seconds: float | None, times: dict[str, float]) -> int:
    """How many steps fit in ``seconds``, given the arms' times per step.

    ``plain_seconds`` is what a plain arm that is cut short will use of it; None if it runs along.
    """
    if plain_seconds is None:
        return int(seconds / sum(times.values()))
    others = sum(time for name, time in times.items() if name != "plain")
    return int((seconds - plain_seconds) / others)


class Run:
    """A training run that can be stopped between two steps, saved, and continued."""

    def __init__(self, settings: Settings, corpus: Corpus) -> None:
        self.settings = settings
        self.corpus = corpus
        self.steps = settings.steps
        both = len(settings.arms) == 2
        # 16-bit floats without hardware for them: the plain arm is cut, float32 is the reference.
        self.plain_seconds = settings.plain_seconds if self.fp16 and both else None
        self.tracks: dict[str, Track] = {}
        for name in settings.arms:
            self.add_track(name)
        if self.fp16 and "fulgurite" in settings.arms:
            self.add_track("reference")

    @property
    def fp16(self) -> bool:
        return self.settings.precision == "fp16"

    def add_track(self, name: str) -> None:
        settings = self.settings
        arm = build_arm(name, settings.model, settings.precision, settings.seed)
        self.tracks[name] = Track(arm)

    @property
    def step(self) -> int:
        """The last step that any arm has done."""
        return max(len(track.steps) for track in self.tracks.values())

    @property
    def finished(self) -> bool:
        return self.steps is not None and self.step >= self.steps and not self.behind(self.step)

    def behind(self, step: int) -> list[str]:
        """Arms that have yet to do a step, who goes first alternating from step to step."""
        names = list(self.tracks) if step % 2 else list(self.tracks)[::-1]
        tracks = self.tracks
        return [
            name
            for name in names
            if len(tracks[name].steps) < min(step, tracks[name].limit or step)
        ]

    def train(self, stop: Callable[[], bool]) -> Iterator[tuple[str, Step]]:
        """Train to the end, or until ``stop()``; yields what each step of each arm did."""
        while not self.finished and not stop():
            waiting = self.behind(self.step)
            if waiting:
                yield waiting[0], self.train_step(waiting[0])
            elif self.steps is None and self.ready_to_plan():
                self.plan()
            else:
                first = self.behind(self.step + 1)[0]
                yield first, self.train_step(first)

    def train_step(self, name: str) -> Step:
        """The next step of an arm."""
        settings, track = self.settings, self.tracks[name]
        number = len(track.steps) + 1
        tokens = self.corpus.batch(number, settings.batch, settings.model.sequence, settings.seed)
        if track.peak_bytes is None:
            started = time.perf_counter()
            track.peak_bytes = track.arm.peak_bytes(tokens)
            track.warm_up_seconds = time.perf_counter() - started
        overflow = number == settings.overflow_step and track.arm.precision == "fp16"
        step = track.arm.train_step(tokens, learning_rate(number, self.steps), overflow=overflow)
        track.steps.append(step)
        limit = self.plain_seconds if name == "plain" else None
        if limit is not None and track.total_seconds + step.seconds > limit:
            track.limit = number
        return step

    def spent(self) -> float:
        return sum(track.total_seconds for track in self.tracks.values())

    def ready_to_plan(self) -> bool:
        slow = self.step >= 2 and self.spent() > self.settings.seconds / 6
        return slow or self.step >= PLANNED_AFTER

    def plan(self) -> None:
        """Fix the number of steps by the times measured so far.

        If the plain arm is so slow that the common curve would be short, it is cut and a float32
        reference joins; the plan is then made when the reference has caught up.
        """
        settings, tracks = self.settings, self.tracks
        times = {name: min(track.seconds) for name, track in tracks.items()}
        left = settings.seconds - self.spent()
        both = "plain" in tracks and "fulgurite" in tracks
        enough = plan_steps(left, None, times) >= min(ENOUGH_STEPS, settings.max_steps)
        if self.plain_seconds is None and both and not enough:
            self.plain_seconds = settings.plain_seconds
            self.add_track("reference")
            return
        plain_left = None
        if self.plain_seconds is not None:
            plain_left = max(0.0, self.plain_seconds - tracks["plain"].total_seconds)
        more = max(1, plan_steps(left, plain_left, times))
        self.steps = min(self.step + more, settings.max_steps)

    def held_out_losses(self) -> dict[str, float]:
        sequence = self.settings.model.sequence
        sequences = self.corpus.held_out_sequences(HELD_OUT_SEQUENCES, sequence)
        return {name: track.arm.evaluate(sequences) for name, track in self.tracks.items()}

    def state(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "digest": self.corpus.digest,
            "steps": self.steps,
            "plain_seconds": self.plain_seconds,
            "tracks": {name: track.state() for name, track in self.tracks.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over counters and curves; the arms' own states are loaded apart."""
        self.steps = state["steps"]
        self.plain_seconds = state["plain_seconds"]
        for name, track in state["tracks"].items():
            if name not in self.tracks:
                self.add_track(name)
            self.tracks[name].load_state(track)


def curve_distance(first: list[float], second: list[float]) -> float:
    """Mean absolute difference of two loss curves over the steps that both have."""
    pairs = list(zip(first, second, strict=False))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def paired_ratio(slow: Track, fast: Track) -> float:
    """Median over the steps that both have of slow's time by fast's."""
    return median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=False))
