"""Where the time of a model's training step goes: torch.profiler's events, told by their layer.

A forward's operators belong to the innermost layer that they run in. A backward's belong to the
layer whose operator recorded them: autograd's sequence numbers say which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from fulgurite.demo.memory import quiet_stderr
from fulgurite.integrations.transformers.classes import released

MARK = "part: "
BACKWARD = "autograd::engine::evaluate_function"
# The first that the end of a class's name matches; what no layer of these holds is the rest.
LAYERS = {
    ("Attention",): "around attention",
    ("Mixer",): "scans",
    ("Experts",): "experts",
    ("Router", "SparseMoeBlock"): "routing",
    ("Linear",): "projections",
    ("Norm",): "norms",
    ("MLP", "Activation"): "activations",
    ("ForCausalLM", "ForImageClassification"): "head and loss",
    ("Model",): "rest",
}
OPERATORS = ("fulgurite::attention", "fulgurite::_attention", "aten::scaled_dot_product")
KERNELS = ("aten::_scaled_dot_product", "ScaledDotProduct")


def parts(step: Callable[[], object], model: nn.Module, steps: int = 3) -> dict[str, float]:
    """Fractions of the time that operators take in training steps of a model of transformers."""
    step()
    activities = [ProfilerActivity.CPU]
    with _marked(model), quiet_stderr(), profile(activities=activities, acc_events=True) as trace:
        for _ in range(steps):
            step()
    events = sorted(trace.events() or [], key=lambda event: event.time_range.start)
    recorded = {  # the last operator before a node is made has its number
        event.sequence_nr: part
        for event in events
        if event.sequence_nr >= 0 and (part := _of_forward(event)) is not None
    }
    seconds: Counter[str] = Counter()
    for event in events:
        seconds[_of(event, recorded)] += event.self_cpu_time_total
    whole = sum(seconds.values())
    return {part: time / whole for part, time in seconds.most_common()}


def layer_part(layer: nn.Module) -> str | None:
    """The part that a layer's own operators are of, by the name of its class."""
    name = released(type(layer)).__name__
    return next((part for ends, part in LAYERS.items() if name.endswith(ends)), None)


@contextmanager
def _marked(model: nn.Module) -> Iterator[None]:
    """Every layer of ``LAYERS`` marks its forward."""
    hooks = []
    for name, layer in model.named_modules():
        part = "head and loss" if name == "lm_head" else layer_part(layer)
        if part is None:
            continue
        open_marks: list[Any] = []

        def enter(*_: Any, part: str = part, marks: list[Any] = open_marks) -> None:
            marks.append(record_function(MARK + part))
            marks[-1].__enter__()

        def leave(*_: Any, marks: list[Any] = open_marks) -> None:
            marks.pop().__exit__(None, None, None)

        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _outwards(event: Any) -> Iterator[Any]:
    """The event and those around it."""
    while event is not None:
        yield event
        event = event.cpu_parent


def _of_forward(event: Any) -> str | None:
    """The part of an operator of the forward; None for those of the backward."""
    for outer in _outwards(event):
        if outer.name.startswith(OPERATORS + KERNELS):
            return "attention"
        if outer.name.startswith(MARK):
            return str(outer.name.removeprefix(MARK))
        if outer.name.startswith(BACKWARD):
            return None
    return None


def _of(event: Any, recorded: dict[int, str]) -> str:
    part = _of_forward(event)
    if part is None:
        nodes = [outer for outer in _outwards(event) if outer.name.startswith(BACKWARD)]
        part = recorded.get(nodes[-1].sequence_nr) if nodes else None
    return part or "rest"
