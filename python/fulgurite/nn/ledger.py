"""What a router notes while it runs: how many tokens chose whom, and losses without a gradient yet.

Checkpointing runs a forward twice, the second time inside of the backward, and both of its kinds
must give what a plain forward gives:

==================  ==================================  =========================================
use_reentrant       first forward                       second forward, in the backward
==================  ==================================  =========================================
False               with gradients                      remakes saved tensors; its graph is unused
True                without gradients                   makes the graph that is differentiated
==================  ==================================  =========================================

So a forward inside of a backward counts nothing and notes no loss. A loss of a forward without
gradients is a promise: when its gradient comes, which is before the second forward, the ledger
opens, and the second forward hangs its loss on the routing weights with that gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Variable

from fulgurite.nn.functional._tracing import is_exporting


def in_backward() -> bool:
    """Whether autograd runs a backward in this thread: then a forward is a recomputation."""
    running: int = torch._C._current_graph_task_id()
    return running != -1


def at_end_of_backward(function: Any) -> None:
    """Call the function when the backward that runs now has ended."""
    Variable._execution_engine.queue_callback(function)


def _count(total: Tensor, counts: Tensor) -> None:
    if not in_backward():
        total += counts
        Ledger.trim_now_and_then()


# In a compiled graph nothing in Python runs, so there the question is asked by an operator.
_library = torch.library.Library("fulgurite_nn", "DEF")
_library.define("count_(Tensor(a!) total, Tensor counts) -> ()")
_library.impl("count_", _count, "CompositeExplicitAutograd")
_library.impl("count_", lambda total, counts: None, "Meta")


def count(total: Tensor, counts: Tensor) -> None:
    """``total += counts``, but not while a forward is recomputed."""
    if not torch.compiler.is_compiling():
        _count(total, counts.to(total.device))
    elif is_exporting():  # a program of its own, which knows no operator of Python
        total += counts
    else:
        torch.ops.fulgurite_nn.count_(total, counts)


class Entry:
    """The loss of one forward, and the entry before it."""

    def __init__(self, loss: Tensor, earlier: Entry | None, differentiable: bool) -> None:
        self.loss = loss
        self.earlier = earlier
        self.differentiable = differentiable  # False: of a forward without gradients
        self.done = False  # a backward has passed

    def mark_done(self, of: Tensor) -> None:
        """Done as soon as a gradient comes to this tensor."""
        entry = weakref.ref(self)  # the graph must not keep what keeps the graph

        def mark(_: Tensor) -> None:
            found = entry()
            if found is not None:
                found.done = True

        if of.requires_grad:
            of.register_hook(mark)


class Ledger:
    """Losses of a router whose gradients nobody has asked for yet. Copied and saved empty.

    Where nobody ever asks, the latest ``LIMIT`` are kept.
    """

    LIMIT = 256
    alive: ClassVar[weakref.WeakSet[Ledger]] = weakref.WeakSet()
    counted: ClassVar[int] = 0

    def __init__(self) -> None:
        Ledger.alive.add(self)
        self.latest: Entry | None = None  # a chain: compiled graphs would guard a list's length
        self.read: list[Entry] = []  # what the last call of aux_losses summed
        self.open: list[tuple[Tensor, Tensor]] = []  # promised losses and their gradients
        self.recomputing = False  # what a compiled forward sees of `in_backward`
        self.recomputed: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger, ()

    @staticmethod
    def trim_now_and_then() -> None:
        """What a compiled forward appends nobody looks at before it is read."""
        Ledger.counted += 1
        if Ledger.counted % Ledger.LIMIT == 0:
            for ledger in list(Ledger.alive):
                ledger.waiting()

    def waiting(self) -> list[Entry]:
        """Entries that no backward has passed, oldest first; the others are forgotten."""
        entries, entry = [], self.latest
        while entry is not None:
            if not entry.done:
                entries.append(entry)
            entry = entry.earlier
        entries = entries[: self.LIMIT]
        entries.reverse()
        self.latest = None
        for entry in entries:
            entry.earlier, self.latest = self.latest, entry
        return entries

    def take(self) -> list[Entry]:
        """The waiting entries, which wait no longer."""
        self.read, self.latest = self.waiting(), None
        return self.read

    def forget(self) -> None:
        self.latest, self.read = None, []

    def note(self, loss: Tensor, weights: Tensor) -> Tensor:
        """Enter the loss of a forward that gave these weights; returns it, or a promise of it."""
        self.waiting()
        self.read = []
        differentiable = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
        if not differentiable:
            loss = promise(loss, self)
        self.latest = entry = Entry(loss, self.latest, differentiable)
        entry.mark_done(weights)
        entry.mark_done(loss)
        return loss

    def recompute(self) -> None:
        """A forward is repeated in a backward: it was promised, and is settled by this backward."""
        if torch.is_grad_enabled():
            promised = (entry for entry in self.waiting() if not entry.differentiable)
            oldest = next(promised, None)
            if oldest is not None:
                oldest.done = True
        self.begin()

    def begin(self, promised: Tensor | None = None, gradient: Tensor | None = None) -> None:
        """A backward has come to a loss; forwards until its end are recomputations."""
        if promised is not None and gradient is not None:
            self.open.append((promised, gradient))
        self.recomputing = True
        at_end_of_backward(self.end)

    def end(self) -> None:
        self.open, self.recomputing, self.recomputed = [], False, None

    def gradient_of(self, loss: Tensor) -> Tensor:
        """The gradient that was asked for a recomputed loss, one of those that are open.

        Of several, the one whose value is nearest: recomputed it is the same, up to noise.
        """
        if len(self.open) == 1:
            return self.open[0][1]
        values = torch.stack([value for value, _ in self.open])
        gradients = torch.stack([gradient for _, gradient in self.open])
        nearest = (values - loss.detach()).abs().argmin(0, keepdim=True)
        return gradients.gather(0, nearest).squeeze(0)


class _Promise(torch.autograd.Function):
    """A loss without a graph. Its gradient is kept in the ledger, for the forward to come."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, loss: Tensor, ledger: Ledger) -> Tensor:
        ctx.value, ctx.ledger = loss, weakref.ref(ledger)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ledger = ctx.ledger()
        if ledger is not None:
            ledger.begin(ctx.value, gradients[0].detach())
        return None, None, None


def promise(loss: Tensor, ledger: Ledger) -> Tensor:
    with torch.enable_grad():
        root = torch.zeros((), dtype=loss.dtype, device=loss.device, requires_grad=True)
        promised: Tensor = _Promise.apply(root, loss.detach(), ledger)
    return promised


class _Hang(torch.autograd.Function):
    """The weights as they are; with their gradient the loss gets its own. Saves no tensor: the two
    forwards of a checkpoint must save the same ones."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], ctx.gradient, None


def hang(weights: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
    """``weights``; their backward gives the loss this gradient."""
    hung: Tensor = _Hang.apply(weights, loss, gradient.to(loss.dtype))
    return hung


def sum_of_losses(entries: Iterable[tuple[Ledger, Entry]]) -> Tensor | None:
    """0-dim, on the device of the first; None without entries."""
    total: Tensor | None = None
    ledgers = set()
    for ledger, entry in entries:
        if not entry.differentiable:
            if in_backward() and torch.is_grad_enabled():
                raise RuntimeError(
                    "aux_losses: expected to be called outside of what is checkpointed with "
                    "use_reentrant=True; return the layer's aux_loss from it instead"
                )
            if not entry.loss.requires_grad:  # of a compiled forward
                entry.loss = promise(entry.loss, ledger)
                entry.mark_done(entry.loss)
        total = entry.loss if total is None else total + entry.loss.to(total.device)
        ledgers.add(weakref.ref(ledger))
    if total is not None and total.requires_grad:
        total = total.view(())  # a node of its own, whose hook is not an entry's

        def begin(_: Tensor) -> None:
            for reference in ledgers:
                found = reference()
                if found is not None:
                    found.begin()

        total.register_hook(begin)
    return total
