"""Random numbers that the backward sees again."""

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from fulgurite.nn.functional._tracing import is_exporting


def uniform_like(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [low, high) of x's shape and type, from torch's default generator.

    A compiler that recomputes activations would draw other numbers in the backward, so what it
    traces is marked as to be saved. With an ``activation_memory_budget`` of 0 torch saves nothing,
    marked or not: RuntimeError.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        traced = torch.compiler.is_dynamo_compiling() and not is_exporting()
        if traced:
            drawn: Tensor = _saved_uniform(x, low, high)
            return drawn
    return torch.empty_like(x).uniform_(low, high)


def _save(*args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


# A node of dynamo's graph, run when the graph below it is traced: only there can marks be set.
@torch.jit.unused
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _saved_uniform(x: Tensor, low: float, high: float) -> Tensor:
    if torch.is_grad_enabled() and torch._functorch.config.activation_memory_budget == 0:
        raise RuntimeError(
            "fulgurite: expected torch._functorch.config.activation_memory_budget > 0 where random"
            " numbers are drawn in a compiled function, got 0: its backward would draw other ones."
            " Dropout takes them as philox"
        )
    marking, _ = create_selective_checkpoint_contexts(_save)
    with marking:
        return torch.empty_like(x).uniform_(low, high)
