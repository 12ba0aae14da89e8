"""AdamW, shaped like torch.optim.AdamW, over one fused operator for all parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _global_optimizer_pre_hooks

from fulgurite.optim._plan import Call, Mode, Numbers, Plan
from fulgurite.optim._states import StateKind

__all__ = ["AdamW"]

_MASTERS = (None, "fp32", "split")

# What torch.optim.AdamW keeps in a group beside the numbers; its checkpoints and ours have the same
# keys. fused is True because that is what the step is, and because torch's own fused optimizer
# would fall out of fused mode by loading anything else.
_TORCH_KEYS: dict[str, Any] = {
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": True,
}

# What an optimizer keeps beside defaults, state and groups, which is all that torch pickles.
_OPTIONS = ("_kind", "_copies", "_max_grad_norm", "_step_supports_amp_scaling")


class AdamW(Optimizer):
    r"""AdamW that clips, unscales and keeps masters in one pass; see docs/ops/optim.md.

    All groups are updated by one call of ``torch.ops.fulgurite.adamw_`` (one for each combination
    of ``decoupled``, ``amsgrad`` and ``maximize`` that occurs), in float32 (float64 for float64
    parameters).

    Args:
        params: parameters, named parameters or groups, as torch takes them; float64, float32,
            bfloat16 or float16.
        lr: learning rate; a tensor of one element is read at each step.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the denominator.
        weight_decay: decay rate of the parameters.
        amsgrad: divide by the running maximum of the second moment.
        maximize: ascend.
        decoupled: True is AdamW; False adds ``weight_decay·p`` to the gradient (Adam).
        master: the float32 value of a 16-bit parameter. ``None``: there is none, the parameter
            itself is rounded at every step; ``"fp32"``: state ``master``; ``"split"``: state
            ``master`` is the int16 that the bfloat16 parameter lacks, half the memory, the same
            values. Only bfloat16 parameters can have one: float16 ones raise NotImplementedError;
            those of 32 and 64 bit need none.
        state_dtype: of the moments. ``None``: float32, float64 for float64 parameters;
            ``torch.bfloat16`` stores them rounded; ``"8bit"`` as codes with a scale for each 256
            elements (parameters of fewer than 4,096 elements, and of float64, keep numbers), which
            goes with neither ``amsgrad``, ``copies`` nor ``ema_decay``.
        copies: one tensor per parameter, over all groups in order: receives a low-precision copy of
            each new value.
        ema_decay: keep a moving average ``ema += (1 − ema_decay)·(p − ema)`` of the parameters in
            the state ``ema``, float32.
        max_grad_norm: clip the norm over all gradients to this, inside the step: gradients stay as
            they are.
        stochastic_rounding: round 16-bit parameters without a master up or down at random, so that
            what is lost averages to nothing. The seed comes from torch's default generator, once.
        fused_unscale: True: under a gradient scaler the step itself unscales, and skips where
            gradients overflowed. False: the scaler does both, for frameworks that clip or watch for
            skipped steps themselves.

    Attributes:
        total_norm: norm of all gradients of the last step, unscaled, before clipping, a float64
            tensor; None without ``max_grad_norm``.
        skipped: 1 if the last step was skipped because a scaler found an overflow, else 0, a
            float32 tensor.

    State keys are torch's (``step``, ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``), plus
    ``master`` and ``ema``; 8-bit moments are ``exp_avg_codes``, ``exp_avg_scales`` and the same of
    ``exp_avg_sq``. ``load_state_dict`` reads torch.optim.AdamW's checkpoints and the other way
    round (8-bit ones only here, where every ``state_dtype`` reads every other); moments and
    masters keep their dtype.

    Example:
        >>> import torch
        >>> from fulgurite.optim import AdamW
        >>> model = torch.nn.Linear(4, 2, dtype=torch.bfloat16)
        >>> optimizer = AdamW(model.parameters(), lr=1e-3, master="split", max_grad_norm=1.0)
        >>> model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["master"].dtype, round(optimizer.total_norm.item(), 4)
        (torch.int16, 3.1623)
    """

    total_norm: Tensor | None
    skipped: Tensor

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled: bool = True,
        master: str | None = None,
        state_dtype: torch.dtype | str | None = None,
        copies: Iterable[Tensor] | None = None,
        ema_decay: float | None = None,
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = False,
        fused_unscale: bool = True,
    ) -> None:
        _check_range("lr", float(lr), 0.0, None)
        for i, beta in enumerate(betas):
            _check_range(f"betas[{i}]", beta, 0.0, 1.0)
        _check_range("eps", eps, 0.0, None)
        _check_range("weight_decay", weight_decay, 0.0, None)
        if ema_decay is not None:
            _check_range("ema_decay", ema_decay, 0.0, 1.0)
        if max_grad_norm is not None:
            _check_range("max_grad_norm", max_grad_norm, 0.0, None)
        if master not in _MASTERS:
            raise ValueError(
                f"fulgurite.optim.AdamW: expected master None, 'fp32' or 'split', got {master!r}"
            )
        if state_dtype not in (None, torch.float32, torch.bfloat16, "8bit"):
            raise ValueError(
                "fulgurite.optim.AdamW: expected state_dtype None, torch.float32, torch.bfloat16"
                f" or '8bit', got {state_dtype!r}"
            )
        self._kind = StateKind(master, state_dtype)
        self._copies = None if copies is None else list(copies)
        self._max_grad_norm = max_grad_norm
        self._step_supports_amp_scaling = fused_unscale
        self._forget()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled,
            "ema_decay": ema_decay,
            **_TORCH_KEYS,
        }
        if stochastic_rounding:  # in the groups, so that checkpoints carry them
            defaults["rounding_seed"] = int(torch.randint(2**63 - 1, ()))
            defaults["rounding_step"] = 0
        super().__init__(params, defaults)
        parameters = sum(len(group["params"]) for group in self.param_groups)
        if self._copies is not None and len(self._copies) != parameters:
            raise ValueError(
                f"fulgurite.optim.AdamW: expected copies for {parameters} parameters,"
                f" got {len(self._copies)}"
            )

    def _forget(self) -> None:
        """Nothing has happened yet."""
        self._plan: Plan | None = None
        self._examined = False  # the plan, by the scaler that calls the step now
        self._norm_sq: Tensor | None = None  # from a LossScaler that has seen the gradients already
        self.total_norm = None
        self.skipped = torch.zeros(())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch's optimizers do."""
        if "decoupled" in param_group:  # torch's name in a group is longer
            param_group["decoupled_weight_decay"] = param_group.pop("decoupled")
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except NotImplementedError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        if self._kind.master is not None:
            for param in group["params"]:
                if param.dtype == torch.float16:
                    raise NotImplementedError(
                        "fulgurite.optim.AdamW: master is not supported with float16 parameters;"
                        " keep them in float32 under autocast"
                    )
        if self._kind.dtype != "8bit":
            return
        for name, given in (
            ("amsgrad", group["amsgrad"]),
            ("ema_decay", group["ema_decay"] is not None),
            ("copies", self._copies is not None),
        ):
            if given:
                raise NotImplementedError(
                    f"fulgurite.optim.AdamW: {name} is not supported with state_dtype '8bit'"
                )

    # ---- the step ----

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss, which is then returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        # A gradient scaler leaves these on the optimizer for the time of the call.
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if not isinstance(found_inf, Tensor):  # GradScaler's sum over no gradients is the number 0
            found_inf = None
        norm_sq, self._norm_sq = self._norm_sq, None
        inv_scale = None if grad_scale is None else grad_scale.double().reciprocal().float()
        compiling = torch.compiler.is_compiling()  # which sees through operators, not through plans
        calls = self._gather() if compiling else []
        plan = None if compiling else self._current_plan()
        multiplier = inv_scale
        if self._max_grad_norm is not None:
            if norm_sq is None and plan is not None:
                _, norm_sq, _ = plan.grad_stats(inv_scale)
            elif norm_sq is None:
                grads = [param.grad for call in calls for param in call.params]
                _, norm_sq, _ = torch.ops.fulgurite.grad_stats(grads, inv_scale=inv_scale)
            multiplier = torch.ops.fulgurite.clip_multiplier(
                norm_sq, self._max_grad_norm, inv_scale=inv_scale
            )
            self.total_norm = norm_sq.sqrt()
        self.skipped = torch.zeros(()) if found_inf is None else (found_inf > 0).float()
        numbers = Numbers(self._hyper(), multiplier, found_inf, self._next_seed())
        if plan is not None:
            plan.step(numbers)
        for call in calls:
            call.run(numbers)

    def _current_plan(self) -> Plan:
        """The plan of the last step if it still holds, else a new one. Collects the gradients."""
        examined, self._examined = self._examined, False
        if examined and self._plan is not None and self._plan.collect():
            return self._plan
        if self._plan is None or not self._plan.holds(self):
            self._plan = Plan(self, self._gather())
            if not self._plan.holds(self):
                raise AssertionError("fulgurite.optim.AdamW: a new plan does not hold")
        return self._plan

    def _grad_stats(self, inv_scale: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What a LossScaler asks before the step; None where the gradients are not in order of the
        parameters.
        """
        if torch.compiler.is_compiling():
            return None
        plan = self._current_plan()
        # The step follows at once; only hooks could change something before.
        self._examined = not (self._optimizer_step_pre_hooks or _global_optimizer_pre_hooks)
        return plan.grad_stats(inv_scale) if plan.calls == 1 else None

    def _gather(self) -> list[Call]:
        """The lists of every call, of parameters that have a gradient."""
        calls: dict[Mode, Call] = {}
        copies = iter(self._copies or ())
        key = -1
        for index, group in enumerate(self.param_groups):
            self._check_group(group)
            for param in group["params"]:
                key += 1  # counts all parameters: a missing gradient shifts nothing
                copy = next(copies, None)
                if param.grad is None:
                    continue
                if param.grad.layout != torch.strided:
                    raise RuntimeError(
                        "fulgurite.optim.AdamW: expected dense gradients, got a sparse one"
                    )
                state = self.state[param]
                if not state:
                    self._kind.start(param, group, state)
                else:
                    self._kind.complete(param, group, state)
                mode = Mode(
                    group["decoupled_weight_decay"],
                    group["amsgrad"],
                    group["maximize"],
                    "exp_avg_codes" in state,
                )
                call = calls.setdefault(mode, Call(mode))
                call.params.append(param)
                call.states.append(state)
                call.groups.append(index)
                call.keys.append(key)
                if copy is not None:
                    call.copies.append(copy)
        return list(calls.values())

    def _hyper(self) -> Tensor:
        """The numbers of every group (groups, 6)."""
        rows = [_numbers(group) for group in self.param_groups]
        return torch.tensor(rows, dtype=torch.float64, device=self._device())

    def _device(self) -> torch.device | None:
        return next((p.device for group in self.param_groups for p in group["params"]), None)

    def _next_seed(self) -> Tensor | None:
        """Seed and number of this step for stochastic rounding."""
        first = self.param_groups[0]
        if first.get("rounding_seed") is None:
            return None
        step = first["rounding_step"] + 1
        for group in self.param_groups:
            group["rounding_step"] = step
        numbers = [first["rounding_seed"], step]
        return torch.tensor(numbers, dtype=torch.int64, device=self._device())

    # ---- checkpoints ----

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of torch.optim.AdamW.

        Moments keep the precision they were saved with (torch's own loading rounds them to the
        parameter's dtype). A float32 master that is loaded where ``master="split"`` sets the
        parameter to its nearest bfloat16, ties away from zero; a split one that is loaded where
        ``master="fp32"`` is joined with the parameter, so load the model first. Moments become
        codes, or codes moments, where ``state_dtype`` asks for it.
        """
        saved: dict[str, Any] = {}

        def remember(_: Optimizer, given: dict[str, Any]) -> None:
            saved.update(given)

        def restore(_: Optimizer) -> None:
            self._restore(saved)

        handles = (
            self.register_load_state_dict_pre_hook(remember),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _restore(self, saved: dict[str, Any]) -> None:
        """States again, from what was saved: torch has cast them to the parameters' dtypes."""
        for group in self.param_groups:
            self._check_group(group)
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        owners = [(group, param) for group in self.param_groups for param in group["params"]]
        for i, (group, param) in zip(ids, owners, strict=True):
            if i in saved["state"]:
                self._kind.restore(param, group, self.state[param], saved["state"][i])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in _OPTIONS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            for key in ("rounding_seed", "rounding_step"):  # of a checkpoint that rounded
                if key not in self.defaults:
                    group.pop(key, None)


def _check_range(name: str, value: float, low: float, high: float | None) -> None:
    """low ≤ value < high."""
    if not value >= low or (high is not None and not value < high):
        bound = f"in [{low}, {high})" if high is not None else f">= {low}"
        raise ValueError(f"fulgurite.optim.AdamW: expected {name} {bound}, got {value}")


def _numbers(group: dict[str, Any]) -> list[float]:
    """A row of the operator's hyper: lr, beta1, beta2, eps, weight_decay, ema_decay."""
    beta1, beta2 = group["betas"]
    ema_decay = 0.0 if group["ema_decay"] is None else group["ema_decay"]
    return [
        float(x)
        for x in (group["lr"], beta1, beta2, group["eps"], group["weight_decay"], ema_decay)
    ]
