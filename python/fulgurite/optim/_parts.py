"""Parts of a model: an optimizer of some parameters, and parameters of which a rank has a shard."""

from __future__ import annotations

import sys
from types import FrameType
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


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
    if getattr(param, "_fsdp_flattened", False) or is_sharded(param):
        raise NotImplementedError(
            "fulgurite.optim.AdamW: max_grad_norm is not supported with FSDP's shards, whose norm"
            " is that of a part; call the module's clip_grad_norm_ instead"
        )


def overflow_of_a_part() -> NotImplementedError:
    """What a LossScaler says of DTensors, as others would take a step that one process skips."""
    return NotImplementedError(
        "fulgurite.amp.LossScaler: DTensor gradients are not supported, a process would see"
        " overflow in its own part only; use torch.amp.GradScaler"
    )


# ---- DTensors, as FSDP2 and tensor parallelism make of parameters ----


def is_sharded(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor, of which this process has a part. Looks at each tensor of a
    step, and must not import what a process without DTensors does not need.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def local_grad(param: Tensor) -> Tensor | None:
    """The part of the gradient that belongs to the part of the parameter."""
    grad = param.grad
    if is_sharded(grad) and is_sharded(param) and grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return None if grad is None else local(grad)


def part_of(part: Tensor, whole: Tensor) -> Tensor:
    """The tensor whose part this is, where ``whole`` is a DTensor: cut like that."""
    if not is_sharded(whole):
        return part
    return type(whole).from_local(
        part, whole.device_mesh, whole.placements,
        run_check=False, shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip


def check_same_parts(index: object, key: str, value: Tensor, param: Tensor) -> None:
    """ValueError where a saved state is not cut like its parameter."""
    if is_sharded(value) and is_sharded(param):
        if value.placements == param.placements and local(value).shape == local(param).shape:
            return
    elif not is_sharded(value) and not is_sharded(param):
        return
    raise ValueError(
        f"fulgurite.optim.AdamW: expected {key} of parameter {index} to be sharded like the"
        f" parameter, {_cut(param)}, got {_cut(value)};"
        " torch.distributed.checkpoint.state_dict.set_optimizer_state_dict does that"
    )


def _cut(tensor: Tensor) -> str:
    return f"a DTensor of {tensor.placements}" if is_sharded(tensor) else "a whole tensor"
