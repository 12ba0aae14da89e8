"""What the scripts share: train before and after a switch, and print what both cost.

Both trainings begin with the same weights and see the same batches. A step's time is the median.
The peak is of all that tensors hold in the first two steps: weights, activations, gradients and the
optimizer's states, which the first step makes.
"""

import copy
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

from torch import nn

from fulgurite.demo.memory import peak_bytes

QUICK = "--quick" in sys.argv[1:]  # few steps of a small model, to see that everything runs


class Log:
    """The loss of every step, and when it ended."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ended: list[float] = []
        self.peak_bytes = 0

    def __call__(self, loss: float) -> None:
        self.losses.append(loss)
        self.ended.append(time.perf_counter())

    def __str__(self) -> str:
        seconds = median(later - earlier for earlier, later in pairwise(self.ended))
        return (
            f"{seconds * 1e3:8.1f} ms a step, peak {self.peak_bytes / 2**20:7.1f} MiB,"
            f" loss {self.losses[0]:.4f} to {self.losses[-1]:.4f}"
        )


def measure(train: Callable[[nn.Module, int, Log], object], model: nn.Module, steps: int) -> Log:
    """Run ``train``, which calls ``log(loss)`` after every step."""
    weights = copy.deepcopy(model.state_dict())
    log = Log()
    log.peak_bytes = sum(weight.nbytes for weight in model.parameters())
    log.peak_bytes += peak_bytes(lambda: train(model, 2, Log()))
    model.load_state_dict(weights)
    train(model, steps, log)
    model.load_state_dict(weights)
    return log


def report(before: Log, after: Log, bound: float) -> None:
    """Print both, and end with an error if a loss differs by more than ``bound``."""
    print(f"before: {before}\nafter:  {after}")
    pairs = zip(before.losses, after.losses, strict=True)
    apart = max(abs(first - second) for first, second in pairs)
    print(f"losses over {len(before.losses)} steps differ by at most {apart:.1e} (bound {bound:g})")
    if not apart <= bound:
        sys.exit("the losses do not agree")
