"""The steps of AdamW: from gradients to one call of the operator for each mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fulgurite.optim import _groups
from fulgurite.optim._parts import is_sharded, local, refuse_shard
from fulgurite.optim._plan import Call, Mode, Numbers, Plan, Seen
from fulgurite.optim._states import StateKind, follow_parameter, take_parameter


class Steps(Optimizer):
    """The part of :class:`fulgurite.optim.AdamW` that runs while a model is trained."""

    _kind: StateKind
    _copies: list[Tensor] | None
    _max_grad_norm: float | None
    _step_supports_amp_scaling: bool

    def _forget(self) -> None:
        """Nothing has happened yet."""
        self._plan: Plan | None = None
        self._norm_sq: Tensor | None = None  # of the gradients that a LossScaler has just looked at
        self._seen = Seen()

    @property
    def total_norm(self) -> Tensor | None:
        """Of all gradients of the last step; None without ``max_grad_norm``."""
        return self._seen.total_norm

    @property
    def skipped(self) -> Tensor:
        """1 if the last step was skipped because a scaler found an overflow, else 0."""
        return self._seen.skipped

    def _scope(self) -> dict[str, Any]:
        """What only the whole optimizer can be, by the names of its arguments."""
        return {
            "master": self._kind.master,
            "state_dtype": self._kind.dtype,
            "copies": self._copies,
            "max_grad_norm": self._max_grad_norm,
            "stochastic_rounding": "rounding_seed" in self.defaults,
            "fused_unscale": self._step_supports_amp_scaling,
        }

    def _check_group(self, group: dict[str, Any]) -> None:
        _groups.check_scope(group, self._scope())
        for param in group["params"]:
            if self._kind.master == "split" and param.dtype == torch.float16:
                raise NotImplementedError(
                    "fulgurite.optim.AdamW: master='split' is not supported with float16"
                    " parameters; use master='fp32'"
                )
            if self._max_grad_norm is not None:
                refuse_shard(param)
            if self._kind.dtype == "8bit" and is_sharded(param):
                raise NotImplementedError(
                    "fulgurite.optim.AdamW: state_dtype '8bit' is not supported with DTensor"
                    " parameters: a shard's scales are of no whole tensor"
                )
        if self._kind.dtype != "8bit":
            return
        for name, given in (
            ("amsgrad", group["amsgrad"]),
            ("ema_decay", group.get("ema_decay") is not None),
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

        Raises:
            ValueError, TypeError: a number that was set in a group and makes no sense (a learning
                rate of NaN). Nothing has been written then.
        """
        # A gradient scaler leaves its numbers on the optimizer for the time of the call.
        scaled = isinstance(getattr(self, "found_inf", None), Tensor)
        try:
            return self._step_with(closure, scaled)
        except BaseException:
            if scaled:  # else the next step would be unscaled twice
                self.__dict__.pop("grad_scale", None)
                self.__dict__.pop("found_inf", None)
            raise

    def _step_with(self, closure: Callable[[], float] | None, scaled: bool) -> float | None:
        loss = None
        if closure is not None:
            if scaled:
                raise RuntimeError(
                    "fulgurite.optim.AdamW: a closure is not supported under a gradient scaler,"
                    " which has looked at the gradients before"
                )
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        rows = _groups.rows(self.param_groups)  # or an error, before anything is written
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if not isinstance(found_inf, Tensor):  # GradScaler's sum over no gradients is the number 0
            found_inf = None
        inv_scale = None if grad_scale is None else grad_scale.double().reciprocal().float()
        if torch.compiler.is_compiling():  # which sees through operators, not through plans
            self._step_by_calls(rows, inv_scale, found_inf)
            return
        norm_sq, self._norm_sq = self._norm_sq, None
        plan = self._plan
        if norm_sq is None or plan is None or not plan.unchanged():
            norm_sq, plan = None, self._current_plan()
        if plan is None:
            self._step_by_calls(rows, inv_scale, found_inf)
            return
        try:
            self._follow_parameters(plan)
            multiplier = inv_scale
            if self._max_grad_norm is not None:
                if norm_sq is None:
                    _, norm_sq, _ = plan.grad_stats(inv_scale)
                multiplier = self._clip(norm_sq, inv_scale)
            plan.step(self._numbers(rows, multiplier, found_inf))  # lets go of the gradients
        except BaseException:
            plan.drop_gradients()
            raise

    def _step_by_calls(
        self, rows: _groups.Rows, inv_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        calls = self._gather()
        multiplier = inv_scale
        if self._max_grad_norm is not None:
            grads = [param.grad for call in calls for param in call.params]
            _, norm_sq, _ = torch.ops.fulgurite.grad_stats(grads, inv_scale=inv_scale)
            multiplier = self._clip(norm_sq, inv_scale)
        numbers = self._numbers(rows, multiplier, found_inf)
        for call in calls:
            for param, state in zip(call.params, call.states, strict=True):
                if self._kind.master == "fp32" and "master" in state:
                    follow_parameter(local(param), local(state["master"]))
            call.run(numbers)

    def _clip(self, norm_sq: Tensor, inv_scale: Tensor | None) -> Tensor:
        self._seen.total_norm = norm_sq.sqrt()
        multiplier: Tensor = torch.ops.fulgurite.clip_multiplier(
            norm_sq, self._max_grad_norm, inv_scale=inv_scale
        )
        return multiplier

    def _numbers(
        self, rows: _groups.Rows, multiplier: Tensor | None, found_inf: Tensor | None
    ) -> Numbers:
        device = self._device()
        self._seen.skipped = (
            torch.zeros((), dtype=torch.float32, device=device)
            if found_inf is None
            else (found_inf > 0).float()
        )
        hyper = torch.tensor(rows, dtype=torch.float64, device=device)
        return Numbers(hyper, multiplier, found_inf, self._next_seed(device))

    def _current_plan(self) -> Plan | None:
        """The plan of the last step if it still holds, else a new one. Collects the gradients.
        None where parameters are DTensors.
        """
        copies = self._copies or []
        if self._plan is None or not self._plan.holds(self, copies):
            if any(is_sharded(param) for param in self._parameters()):
                self._plan = None
                return None
            self._plan = Plan(self, self._gather(), copies, self._plan)
            if not self._plan.holds(self, copies):
                raise AssertionError("fulgurite.optim.AdamW: a new plan does not hold")
        return self._plan

    def _follow_parameters(self, plan: Plan) -> None:
        """Whole masters of parameters that may have been written take the new values."""
        if self._kind.master != "fp32":
            return
        written = plan.written()
        if written:
            params = self._parameters()
            for key in written:
                follow_parameter(params[key], self.state[params[key]]["master"])

    def _parameters(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    @torch.no_grad()
    def reload_masters(self) -> None:
        """Take every master, and every copy, from its parameter anew.

        The next step starts from the values that are in the parameters at any rate, where their
        version counters or addresses tell that they were written: after ``load_state_dict``,
        ``clamp_``, pruning, ``p.data = …``. Masters keep the digits that the parameters lack where
        both agree. Call this where a float32 master cannot be told (writes through ``p.data``,
        ``p.detach().numpy()`` or another process raise no version), or to make masters equal to
        the parameters to the bit.
        """
        params = self._parameters()
        for param in params:
            if param in self.state:
                take_parameter(param, self.state[param])
        for param, copy in zip(params, self._copies or (), strict=False):
            copy.copy_(param)

    # ---- lists ----

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

    def _device(self) -> torch.device:
        params = (param for group in self.param_groups for param in group["params"])
        return next((param.device for param in params), torch.device("cpu"))

    def _next_seed(self, device: torch.device) -> Tensor | None:
        """Seed and number of this step for stochastic rounding."""
        first = self.param_groups[0] if self.param_groups else {}
        if first.get("rounding_seed") is None:
            return None
        step = first["rounding_step"] + 1
        for group in self.param_groups:
            group["rounding_step"] = step
        numbers = [first["rounding_seed"], step]
        return torch.tensor(numbers, dtype=torch.int64, device=device)
