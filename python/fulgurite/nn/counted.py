"""What a router counts and the losses it leaves, over checkpoints, copies, casts, state dicts."""

from typing import Any

import torch
from torch import Tensor, nn

from fulgurite.nn.functional._tracing import is_exporting
from fulgurite.nn.ledger import (
    Entry,
    Ledger,
    at_end_of_backward,
    count,
    hang,
    in_backward,
    sum_of_losses,
)

COUNTS = ("load", "dropped")


class Counted(nn.Module):
    """The part of :class:`fulgurite.nn.Router` that changes while it runs; see there.

    The counts are plain tensors: what data-parallel wrappers broadcast are buffers.
    """

    load: Tensor
    dropped: Tensor
    aux_loss: Tensor
    selection_bias: Tensor | None
    balance_loss_weight: float
    z_loss_weight: float

    def start_counts(self, num_experts: int, device: torch.device | None) -> None:
        self.load = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self.dropped = torch.zeros((), dtype=torch.int64, device=device)
        self.aux_loss = torch.zeros((), dtype=torch.float32, device=device)
        self.ledger = Ledger()

    def reset_counts(self) -> None:
        self.load.zero_()
        self.dropped.zero_()
        self.aux_loss = torch.zeros_like(self.aux_loss.detach())
        self.ledger.forget()

    def has_loss(self) -> bool:
        return self.balance_loss_weight != 0.0 or self.z_loss_weight != 0.0

    @torch.jit.unused
    def note(self, weights: Tensor, counts: Tensor, dropped: Tensor, loss: Tensor) -> Tensor:
        """Count a training forward and keep its loss; returns weights that carry what it owes."""
        self.to_device_of(counts)
        count(self.load, counts)
        count(self.dropped, dropped)
        if not self.has_loss():
            self.aux_loss = loss
            return weights
        ledger = self.ledger
        if is_exporting():
            self.aux_loss = loss
        elif torch.compiler.is_compiling():
            self.aux_loss = loss
            if ledger.recomputing:
                ledger.recomputed = loss  # the same outputs as the first time
            else:
                ledger.latest = Entry(loss, ledger.latest, torch.is_grad_enabled())
        elif in_backward():
            keep_aux_loss(self, loss)
            ledger.recompute()
        else:
            self.aux_loss = ledger.note(loss, weights)
        if ledger.open and loss.requires_grad:
            weights = hang(weights, loss, ledger.gradient_of(loss))
        return weights

    def note_evaluation(self, weights: Tensor) -> None:
        """The last forward, which gave these weights, has no loss."""
        if not self.has_loss():
            return
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            exporting = is_exporting()
            if exporting:
                return
        self.aux_loss = torch.zeros((), dtype=weights.dtype, device=weights.device)

    @torch.jit.unused
    def to_device_of(self, counts: Tensor) -> None:
        """Move the counts where the weights were moved without them.

        nn.DataParallel's replicas share those of the module.
        """
        if self.load.device != counts.device and not getattr(self, "_is_replica", False):
            for name in COUNTS:
                total = getattr(self, name)
                total.data = total.to(counts.device)

    @torch.jit.unused
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        bias = self.selection_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.selection_bias
        if bias is not None and moved is not None and moved.dtype != bias.dtype:
            self.selection_bias = bias.to(moved.device)
        for name in COUNTS:
            setattr(self, name, fn(getattr(self, name)))
        self.aux_loss = torch.zeros((), dtype=torch.float32, device=self.load.device)
        return self

    @torch.jit.unused
    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in COUNTS:
            destination[prefix + name] = getattr(self, name).detach()

    @torch.jit.unused
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in COUNTS:
            key, total = prefix + name, getattr(self, name)
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            if key not in state_dict:
                if strict:
                    missing_keys.append(key)
            elif state_dict[key].shape != total.shape:
                error_msgs.append(
                    f"size mismatch for {key}: expected {list(total.shape)}, "
                    f"got {list(state_dict[key].shape)}"
                )
            elif local_metadata.get("assign_to_params_buffers", False):
                setattr(self, name, state_dict[key].detach())
            else:
                total.copy_(state_dict[key])

    @torch.jit.unused
    def __getstate__(self) -> dict[str, Any]:
        return state_without_graph(self)


def keep_aux_loss(module: Any, loss: Tensor) -> None:
    """``module.aux_loss = loss``; a repeated forward's graph is not kept beyond its backward."""

    def let_go() -> None:
        module.aux_loss = module.aux_loss.detach()

    module.aux_loss = loss
    if not torch.compiler.is_compiling() and in_backward():
        at_end_of_backward(let_go)


def state_without_graph(module: nn.Module) -> dict[str, Any]:
    """What to copy or save of a module: its ``aux_loss`` holds the graph of the last batch."""
    state = module.__dict__.copy()
    state["aux_loss"] = torch.zeros_like(state["aux_loss"].detach())
    return state


def aux_losses(model: nn.Module) -> Tensor:
    """Auxiliary losses of a model, to be added to its loss: a 0-dim tensor, 0 if it has none.

    The sum over the forwards in training mode, of every router, since the last call: a layer that
    ran twice counts twice, one that was not run or is in eval mode does not count. A loss counts in
    one backward: what a backward has passed is left out. Called again with no forward in between
    it returns the same again. Of losses that nobody asks for a layer keeps the last 256.

    >>> from fulgurite.nn import Router
    >>> layers = nn.Sequential(Router(8, 4, 2, z_loss_weight=1e-3))
    >>> _ = layers(torch.randn(3, 8))
    >>> bool(aux_losses(layers) > 0)
    True
    """
    training: list[Ledger] = []
    scripted: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, Counted):
            if module.training:
                training.append(module.ledger)
            else:
                module.ledger.forget()
        elif getattr(module, "original_name", None) == "Router" and module.training:
            loss: Any = module.aux_loss
            scripted.append(loss)
    if any(ledger.waiting() for ledger in training):
        for ledger in training:
            ledger.take()
    total = sum_of_losses((ledger, entry) for ledger in training for entry in ledger.read)
    for loss in scripted:
        total = loss if total is None else total + loss.to(total.device)
    if total is None:
        weight = next(model.parameters(), None)
        device = "cpu" if weight is None else weight.device
        return torch.zeros((), dtype=torch.float32, device=device)
    return total
