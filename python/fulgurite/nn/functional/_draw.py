"""Random numbers that the backward sees again."""

import torch
from torch import Tensor
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from fulgurite.nn.functional._tracing import is_exporting


def uniform_like(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [low, high) of x's shape and type, from torch's default generator.

    A compiler that recomputes activations would draw other numbers in the backward, so what it
    traces is marked: as to be saved, or with an ``activation_memory_budget`` of 0, where torch
    saves no result, marked or not, as to be drawn again from the state that the generator had.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        traced = torch.compiler.is_dynamo_compiling() and not is_exporting()
        if traced:
            drawn: Tensor = _marked_uniform(x, low, high)
            return drawn
    return torch.empty_like(x).uniform_(low, high)


# A node of dynamo's graph, run when the graph below it is traced: only there can marks be set.
@torch.jit.unused
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _marked_uniform(x: Tensor, low: float, high: float) -> Tensor:
    again = _memory_budget() == 0 and _with_backward()
    policy = CheckpointPolicy.PREFER_RECOMPUTE if again else CheckpointPolicy.MUST_SAVE
    marking, _ = create_selective_checkpoint_contexts(lambda *args, **kwargs: policy)
    # Between two checkpointed regions torch marks what the later one reads as to be saved instead,
    # which is nothing to rely on here: so this is the last region.
    marking.ac_graph_id = 2**62
    with marking:
        return torch.empty_like(x).uniform_(low, high)


def _memory_budget() -> float:
    """Of the graph being traced: its region's, or everybody's."""
    region = traceback.current_meta.get("custom") or {}
    everywhere: float = torch._functorch.config.activation_memory_budget
    budget: float = region.get("_region_activation_memory_budget", everywhere)
    return budget


def _with_backward() -> bool:
    """Whether the graph being traced is that of a forward and its backward."""
    mode = get_proxy_mode()  # None where only shapes are asked for
    inputs = () if mode is None else mode.tracer.graph.find_nodes(op="placeholder")
    return any("tangents" in node.name for node in inputs)
