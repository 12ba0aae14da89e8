"""Dynamic loss scaling that says what happened, shaped like torch.amp.GradScaler."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from fulgurite._numbers import number
from fulgurite.amp._options import OWNER, check_options, check_scale
from fulgurite.optim import AdamW
from fulgurite.optim._parts import is_sharded, overflow_of_a_part

__all__ = ["LossScaler"]


class LossScaler(GradScaler):
    r"""GradScaler with hysteresis, a floor, a ceiling and a record.

    How to use it: docs/howto/mixed_precision.md.

    **After** ``step(optimizer)`` **with fulgurite's AdamW the gradients are still multiplied by the
    scale**: the step unscales on the way, which saves a pass over them. (torch's fused optimizers
    do the same.) To read or clip gradients by hand call ``unscale_(optimizer)`` before, or make the
    optimizer with ``fused_unscale=False``.

    ``scale``, ``unscale_``, ``step``, ``update`` and the rest are GradScaler's; state dicts go both
    ways. Works with fulgurite's and torch's optimizers.

    Args:
        device: where the scale lives, "cpu" or "cuda".
        init_scale: the first scale.
        growth_factor: of the scale after ``growth_interval`` clean updates in a row.
        backoff_factor: of the scale after an overflow.
        growth_interval: clean updates before growth.
        enabled: False: every method passes through.
        hysteresis: overflows that must come before the scale backs off; 1 backs off at once.
        refill: when the tolerance is whole again: at any clean update ("clean", Apex) or only when
            the scale grows ("growth", Megatron).
        min_scale: the scale never backs off below it.
        max_scale: the scale never grows above it; None is no bound but float32's. ``min_scale``
            and ``max_scale`` equal to ``init_scale`` make a static scale, which still skips steps.
        model: names the parameters for ``first_bad_name``; not pickled.

    Raises:
        ValueError: a scale that is not above 0 and finite in float32, a growth factor that is not
            above 1, a backoff factor outside of (0, 1), intervals below 1, bounds that hold no
            scale. TypeError: what is no number. Numbers that are set or loaded later are checked as
            ``update_scale_`` checks them.

    Attributes:
        total_norm: norm of the last optimizer's gradients, unscaled, before clipping, a float64
            tensor; None before the first.
        first_bad: among the last optimizer's parameters that have a gradient, the index of the
            first one with a NaN or Inf; −1 if there was none.
        first_bad_name: its name in ``model``; None without a model or a bad gradient.

    An overflow at a scale that has nowhere left to go (``min_scale``, or 0) warns: the gradients
    are not finite at any scale.

    Example:
        >>> import torch
        >>> from fulgurite.amp import LossScaler
        >>> from fulgurite.optim import AdamW
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer, scaler = AdamW([weight]), LossScaler("cpu", init_scale=1024.0)
        >>> scaler.scale((weight * torch.tensor([1.0, float("inf"), 1.0])).sum()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> scaler.skipped, scaler.first_bad, scaler.get_scale(), weight.tolist()
        (1, 0, 512.0, [1.0, 1.0, 1.0])
    """

    _scale: Tensor | None
    _growth_tracker: Tensor | None

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        hysteresis: int = 1,
        refill: str = "clean",
        min_scale: float = 0.0,
        max_scale: float | None = None,
        model: nn.Module | None = None,
    ) -> None:
        own = check_options(
            hysteresis=hysteresis, refill=refill, min_scale=min_scale, max_scale=max_scale
        )
        if enabled:  # else torch's scaler looks at none of these
            init_scale = check_scale("init_scale", init_scale)
            number(OWNER, "growth_factor", growth_factor, above=1)
            number(OWNER, "backoff_factor", backoff_factor, above=0, below=1)
            changes = check_options(
                growth_factor=growth_factor,
                backoff_factor=backoff_factor,
                growth_interval=growth_interval,
            )
            growth_factor, backoff_factor, growth_interval = changes.values()
        super().__init__(
            device, init_scale, growth_factor, backoff_factor, growth_interval, enabled
        )
        self._max_hysteresis = own["hysteresis"]
        self._refill = own["refill"]
        self._min_scale, self._max_scale = own["min_scale"], own["max_scale"]
        self._init_hysteresis = self._max_hysteresis
        self._init_counters = [0, 0, 0, 0]
        self._hysteresis: Tensor | None = None
        self._counters: Tensor | None = None
        self._norm_sq: Tensor | None = None
        self._first_bad: Tensor | None = None
        self._model = model
        self._examined: list[int] = []  # ids of the last optimizer's parameters with a gradient
        self._stepping = False
        self._found: dict[int, list[Tensor]] = {}  # of the last update, by optimizer

    # ---- what happened ----

    @property
    def skipped(self) -> int:
        """Number of updates with an overflow so far. Waits for the device."""
        return self._count(1)

    @property
    def skipped_in_a_row(self) -> int:
        """Number of the latest updates that all had an overflow. Waits for the device."""
        return self._count(2)

    @property
    def last_skipped(self) -> int:
        """Number (from 1) of the latest update with an overflow, 0 if there was none. Waits for the
        device.
        """
        return self._count(3)

    @property
    def total_norm(self) -> Tensor | None:
        return None if self._norm_sq is None else self._norm_sq.sqrt()

    @property
    def first_bad(self) -> int:
        return -1 if self._first_bad is None else int(self._first_bad.item())

    @property
    def first_bad_name(self) -> str | None:
        """Waits for the device."""
        index = self.first_bad
        if self._model is None or index < 0:
            return None
        bad = self._examined[index]
        names = (name for name, param in self._model.named_parameters() if id(param) == bad)
        return next(names, None)

    def was_skipped(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer's last step was skipped, before and after ``update``: a learning
        rate schedule moves on only if not. Waits for the device.

        A wrapper whose ``optimizer`` took the step (Accelerate's, Lightning's) may ask as well.
        """
        if not self._enabled:
            return False
        asked: Any = optimizer
        while asked is not None:
            state = self._per_optimizer_states.get(id(asked))
            if state is not None:
                return _any_overflow(state["found_inf_per_device"].values())
            if id(asked) in self._found:
                return _any_overflow(self._found[id(asked)])
            asked = getattr(asked, "optimizer", None)
        return False

    def _count(self, index: int) -> int:
        counters = self._init_counters if self._counters is None else self._counters.tolist()
        return int(counters[index])

    # ---- GradScaler's steps ----

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        super()._lazy_init_scale_growth_tracker(dev)
        self._hysteresis = torch.full((), self._init_hysteresis, dtype=torch.int32, device=dev)
        self._counters = torch.tensor(self._init_counters, dtype=torch.int64, device=dev)

    def _gradients(self, optimizer: Optimizer, allow_fp16: bool) -> list[Tensor]:
        """The gradients of an optimizer in order, of sparse ones the values."""
        grads = []
        for group in optimizer.param_groups:
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                if is_sharded(grad):
                    raise overflow_of_a_part()
                if not allow_fp16 and grad.dtype == torch.float16:
                    raise ValueError("Attempting to unscale FP16 gradients.")
                if grad.is_sparse:
                    # Duplicate indices add up, which may overflow: look at the sums.
                    param.grad = grad = grad.coalesce()
                    grad = grad._values()
                grads.append(grad)
        return grads

    def _remember_parameters(self, optimizer: Optimizer) -> None:
        """Whose gradients are looked at: what ``first_bad`` counts."""
        if self._model is not None:
            self._examined = [
                id(param)
                for group in optimizer.param_groups
                for param in group["params"]
                if param.grad is not None
            ]

    def _examine(self, grads: list[Tensor], inv_scale: Tensor) -> dict[torch.device, Tensor]:
        """Statistics of all gradients; found_inf by device."""
        assert self._scale is not None
        home = self._scale.device
        places: dict[torch.device, list[int]] = {}
        for i, grad in enumerate(grads):
            places.setdefault(grad.device, []).append(i)
        found: dict[torch.device, Tensor] = {}
        norms, firsts = [], []
        for device, indices in places.items():
            found[device], norm_sq, first_bad = torch.ops.fulgurite.grad_stats(
                [grads[i] for i in indices], inv_scale=inv_scale.to(device)
            )
            norms.append(norm_sq.to(home))
            if len(places) > 1:  # back to the index among all of them
                table = torch.tensor([*indices, len(grads)], dtype=torch.int64, device=device)
                first_bad = table[first_bad]
            firsts.append(first_bad.to(home))
        if not norms:
            norms = [torch.zeros((), dtype=torch.float64, device=home)]
            firsts = [torch.full((), -1, dtype=torch.int64, device=home)]
        self._norm_sq = torch.stack(norms).sum()
        self._first_bad = torch.stack(firsts).min()
        if len(places) > 1:
            self._first_bad = torch.where(self._first_bad == len(grads), -1, self._first_bad)
        return found

    def _inv_scale(self) -> Tensor:
        assert self._scale is not None
        return self._scale.double().reciprocal().float()

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        with torch.no_grad():
            grads = self._gradients(optimizer, allow_fp16)
            self._remember_parameters(optimizer)
            found = self._examine(grads, inv_scale)
            for device, flag in found.items():
                own = [grad for grad in grads if grad.device == device]
                torch.ops.fulgurite.unscale_(own, flag, inv_scale.to(device))
        return found

    def _check_inf_per_device(self, optimizer: Optimizer) -> dict[str, Any]:
        """For an optimizer that unscales by itself: look, write nothing, and hand it the norm that
        was found on the way.
        """
        self._check_scale_growth_tracker("_check_inf_per_device")
        inv_scale = self._inv_scale()
        with torch.no_grad():
            if isinstance(optimizer, AdamW) and not torch.compiler.is_compiling():
                flag, self._norm_sq, self._first_bad = optimizer._grad_stats(
                    inv_scale, step_follows=self._stepping
                )
                found = {flag.device: flag}
            else:
                found = self._examine(self._gradients(optimizer, True), inv_scale)
            self._remember_parameters(optimizer)
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = found
        return found  # type: ignore[return-value]

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Unscale and step, unless gradients overflowed; see torch.amp.GradScaler.step.

        A norm that was found on the way is used by the step if it follows at once. Where it raises,
        scale and norm do not outlive the call: the next step, with or without a scaler, is its own.
        """
        if not self._enabled or not isinstance(optimizer, AdamW):
            return super().step(optimizer, *args, **kwargs)
        before = {key: vars(optimizer).get(key) for key in ("grad_scale", "found_inf")}
        self._stepping = True
        try:
            return super().step(optimizer, *args, **kwargs)
        except BaseException:
            for key, value in before.items():
                if value is None:
                    vars(optimizer).pop(key, None)
                else:
                    setattr(optimizer, key, value)
            raise
        finally:
            self._stepping = False
            optimizer._forget_gradients()

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Update the scale from what the steps since the last update found, or set it to
        ``new_scale``.
        """
        if not self._enabled:
            return
        self._found = {
            optimizer: list(state["found_inf_per_device"].values())
            for optimizer, state in self._per_optimizer_states.items()
        }
        if new_scale is not None:
            if not isinstance(new_scale, Tensor):
                new_scale = check_scale("new_scale", new_scale)
            super().update(new_scale)
            return
        scale, growth_tracker = self._check_scale_growth_tracker("update")
        flags = [
            flag.to(scale.device, non_blocking=True)
            for found in self._found.values()
            for flag in found
        ]
        if not flags:
            raise AssertionError("No inf checks were recorded prior to update.")
        # Elsewhere the question would wait for the device.
        at_floor = scale.device.type == "cpu" and scale.item() <= self._min_scale
        torch.ops.fulgurite.update_scale_(
            scale,
            growth_tracker,
            self._hysteresis,
            self._counters,
            flags[0] if len(flags) == 1 else torch.stack(flags).amax(),
            growth_factor=self._growth_factor,
            backoff_factor=self._backoff_factor,
            growth_interval=self._growth_interval,
            max_hysteresis=self._max_hysteresis,
            refill=self._refill,
            min_scale=self._min_scale,
            max_scale=self._max_scale,
        )
        self._per_optimizer_states.clear()
        if at_floor:
            self._warn_of_overflows()

    def _warn_of_overflows(self) -> None:
        in_a_row = self._count(2)
        if in_a_row > self._max_hysteresis:
            warnings.warn(
                f"fulgurite.amp.LossScaler: the scale is at its floor of {self._min_scale} and"
                f" {in_a_row} updates in a row overflowed: the gradients are not finite at any"
                " scale",
                RuntimeWarning,
                stacklevel=3,
            )

    def set_growth_factor(self, new_factor: float) -> None:
        """Set the growth factor; above 0."""
        super().set_growth_factor(check_options(growth_factor=new_factor)["growth_factor"])

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set the backoff factor; above 0."""
        super().set_backoff_factor(check_options(backoff_factor=new_factor)["backoff_factor"])

    def set_growth_interval(self, new_interval: int) -> None:
        """Set the growth interval; at least 1."""
        super().set_growth_interval(check_options(growth_interval=new_interval)["growth_interval"])

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """GradScaler's five entries and ours; empty if not enabled. Call it after ``update``."""
        if not self._enabled:
            return {}
        return {
            **super().state_dict(),
            "hysteresis": self._max_hysteresis,
            "refill": self._refill,
            "min_scale": self._min_scale,
            "max_scale": self._max_scale,
            "_hysteresis_tracker": self._hysteresis_now(),
            "_counters": [self._count(i) for i in range(4)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of GradScaler, which leaves hysteresis, bounds and counters
        as they are.

        Raises:
            ValueError, TypeError: options that no update could be made with; nothing is loaded.
        """
        own = {
            "hysteresis": self._max_hysteresis,
            "refill": self._refill,
            "min_scale": self._min_scale,
            "max_scale": self._max_scale,
        }
        names = ("growth_factor", "backoff_factor", "growth_interval", *own)
        if self._enabled:
            own = check_options(
                **{**own, **{name: state_dict[name] for name in names if name in state_dict}}
            )
        super().load_state_dict(state_dict)
        if not self._enabled:
            return
        self._max_hysteresis, self._refill = own["hysteresis"], own["refill"]
        self._min_scale, self._max_scale = own["min_scale"], own["max_scale"]
        self._init_hysteresis = state_dict.get("_hysteresis_tracker", self._hysteresis_now())
        self._init_counters = list(state_dict.get("_counters", [self._count(i) for i in range(4)]))
        if self._hysteresis is not None and self._counters is not None:
            self._hysteresis.fill_(self._init_hysteresis)
            self._counters.copy_(
                torch.tensor(self._init_counters, dtype=torch.int64, device=self._counters.device)
            )

    def _hysteresis_now(self) -> int:
        return self._init_hysteresis if self._hysteresis is None else int(self._hysteresis.item())

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._enabled:  # as GradScaler does with its own tensors: made again at the next scale()
            state["_init_hysteresis"] = self._hysteresis_now()
            state["_init_counters"] = [self._count(i) for i in range(4)]
            state["_hysteresis"] = None
            state["_counters"] = None
        state["_model"], state["_examined"], state["_found"] = None, [], {}
        return state


def _any_overflow(flags: Iterable[Tensor]) -> bool:
    return any(flag.item() > 0 for flag in flags)
