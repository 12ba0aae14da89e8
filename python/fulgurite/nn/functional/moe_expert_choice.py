"""Expert choice as a function. The mathematics: docs/ops/moe_route_expert_choice.md."""

import torch
from torch import Tensor

__all__ = ["moe_route_expert_choice"]


def moe_route_expert_choice(logits: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    r"""Let each of E experts choose ``capacity`` of T tokens.

    ``G = softmax(logits)`` over the experts; each expert takes the tokens of largest G. Ties go to
    the earlier token, and NaN comes last.

    Args:
        logits: (T,E), float64, float32, bfloat16 or float16.
        capacity: C, tokens per expert, 0 ≤ C ≤ T; published models take 2·T/E.

    Returns:
        weights (E,C): G of the tokens taken, by falling G, float32 (float64 for float64), with
        gradient to logits; token_ids (E,C) int32, distinct within an expert.

    Raises:
        TypeError, RuntimeError (shape), ValueError (capacity).

    Example:
        >>> import torch
        >>> import fulgurite.nn.functional as F
        >>> logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
        >>> weights, token_ids = F.moe_route_expert_choice(logits, 2)
        >>> token_ids.tolist()
        [[1, 2], [0, 2]]
        >>> round(weights[1, 1].item(), 4)
        0.5
    """
    weights, token_ids = torch.ops.fulgurite.moe_route_expert_choice(logits, capacity)
    return weights, token_ids
