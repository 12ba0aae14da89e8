"""Optimizers of a part of a model, whose gradients have no norm of their own."""

from __future__ import annotations

import sys
from types import FrameType

from torch import Tensor


def refuse_sharing_rank() -> None:
    """NotImplementedError where ZeroRedundancyOptimizer is making an optimizer of its rank's share.

    It tells the optimizer nothing of itself: the frames that call are all there is to see.
    """
    if "torch.distributed.optim.zero_redundancy_optimizer" not in sys.modules:
        return
    from torch.distributed.optim import ZeroRedundancyOptimizer

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ZeroRedundancyOptimizer):
            raise NotImplementedError(
                "fulgurite.optim.AdamW: max_grad_norm is not supported in ZeroRedundancyOptimizer:"
                " each rank would clip by the norm of its own share; call"
                " torch.nn.utils.clip_grad_norm_ before the step"
            )
        frame = frame.f_back


def refuse_shard(param: Tensor) -> None:
    """NotImplementedError for a parameter that FSDP has cut."""
    if getattr(param, "_fsdp_flattened", False):
        raise NotImplementedError(
            "fulgurite.optim.AdamW: max_grad_norm is not supported with FSDP's shards, whose norm"
            " is that of a part; call the module's clip_grad_norm_ instead"
        )
