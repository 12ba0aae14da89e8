"""AdamW, shaped like torch.optim.AdamW, over one fused operator for all parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _global_optimizer_pre_hooks

from fulgurite.optim import _groups
from fulgurite.optim._parts import refuse_shard, refuse_sharing_rank
from fulgurite.optim._plan import Call, Mode, Numbers, Plan
from fulgurite.optim._states import StateKind, check_saved, follow_parameter, take_parameter

__all__ = ["AdamW"]

_MASTERS = (None, "fp32", "split")

# What an optimizer keeps beside defaults, state and groups, which is all that torch pickles.
_OPTIONS = ("_kind", "_copies", "_max_grad_norm", "_step_supports_amp_scaling")


class AdamW(Optimizer):
    r"""AdamW that clips, unscales and keeps masters in one pass; see docs/ops/optim.md.

    **Under a gradient scaler the gradients stay multiplied by the scale, also after the step**; see
    ``fused_unscale``.

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
            values; float16 parameters raise NotImplementedError. Parameters of 32 and 64 bits need
            none. A value that is written into a parameter is what the next step starts from; see
            ``reload_masters``.
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
            gradients overflowed, without a pass that writes the gradients. False: the scaler does
            both and the gradients are unscaled, for code that reads or clips them and frameworks
            that watch for skipped steps.

    Attributes:
        total_norm: norm of all gradients of the last step, unscaled, before clipping, a float64
            tensor; None without ``max_grad_norm``.
        skipped: 1 if the last step was skipped because a scaler found an overflow, else 0, a
            float32 tensor.

    State keys are torch's (``step``, ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``), plus
    ``master`` and ``ema``; 8-bit moments are ``exp_avg_codes``, ``exp_avg_scales`` and the same of
    ``exp_avg_sq``. ``load_state_dict`` reads checkpoints of torch.optim.AdamW and Adam, and the
    other way round (8-bit ones only here, where every ``state_dtype`` reads every other); moments
    and masters keep their dtype, float32 masters and split ones become each other.

    Groups may have entries of their own (``name``, ``initial_lr``); an option of the whole
    optimizer in a group and a misspelt option raise ValueError.

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
        if master not in _MASTERS:
            raise ValueError(
                f"fulgurite.optim.AdamW: expected master None, 'fp32' or 'split', got {master!r}"
            )
        if state_dtype not in (None, torch.float32, torch.bfloat16, "8bit"):
            raise ValueError(
                "fulgurite.optim.AdamW: expected state_dtype None, torch.float32, torch.bfloat16"
                f" or '8bit', got {state_dtype!r}"
            )
        if max_grad_norm is not None:
            if not max_grad_norm >= 0:
                raise ValueError(
                    f"fulgurite.optim.AdamW: expected max_grad_norm >= 0, got {max_grad_norm}"
                )
            refuse_sharing_rank()
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
            **_groups.TORCH_KEYS,
        }
        if ema_decay is not None:  # else no entry of a group that torch would not know
            defaults["ema_decay"] = ema_decay
        if stochastic_rounding:  # in the groups, so that checkpoints carry them
            defaults["rounding_seed"] = int(
                torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")
            )
            defaults["rounding_step"] = 0
        _groups.check_numbers(defaults)
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
        self._norm_sq: Tensor | None = None  # of the gradients that a LossScaler has just looked at
        self.total_norm = None
        self.skipped = torch.zeros((), dtype=torch.float32, device="cpu")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch's optimizers do."""
        if isinstance(param_group, dict):  # else torch says what is wrong
            _groups.check_names(param_group)
            if "decoupled" in param_group:  # torch's name in a group is longer
                param_group["decoupled_weight_decay"] = param_group.pop("decoupled")
        super().add_param_group(param_group)
        try:
            _groups.check_numbers(self.param_groups[-1])
            self._check_group(self.param_groups[-1])
        except (ValueError, NotImplementedError):
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        _groups.check_scope(group)
        for param in group["params"]:
            if self._kind.master == "split" and param.dtype == torch.float16:
                raise NotImplementedError(
                    "fulgurite.optim.AdamW: master='split' is not supported with float16"
                    " parameters; use master='fp32'"
                )
            if self._max_grad_norm is not None:
                refuse_shard(param)
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
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if not isinstance(found_inf, Tensor):  # GradScaler's sum over no gradients is the number 0
            found_inf = None
        inv_scale = None if grad_scale is None else grad_scale.double().reciprocal().float()
        if torch.compiler.is_compiling():  # which sees through operators, not through plans
            self._step_by_calls(inv_scale, found_inf)
            return
        norm_sq, self._norm_sq = self._norm_sq, None
        plan = self._plan
        if norm_sq is None or plan is None or not plan.unchanged():
            norm_sq, plan = None, self._current_plan()
        try:
            self._follow_parameters(plan)
            multiplier = inv_scale
            if self._max_grad_norm is not None:
                if norm_sq is None:
                    _, norm_sq, _ = plan.grad_stats(inv_scale)
                multiplier = self._clip(norm_sq, inv_scale)
            plan.step(self._numbers(multiplier, found_inf))  # lets go of the gradients
        except BaseException:
            plan.drop_gradients()
            raise

    def _step_by_calls(self, inv_scale: Tensor | None, found_inf: Tensor | None) -> None:
        calls = self._gather()
        multiplier = inv_scale
        if self._max_grad_norm is not None:
            grads = [param.grad for call in calls for param in call.params]
            _, norm_sq, _ = torch.ops.fulgurite.grad_stats(grads, inv_scale=inv_scale)
            multiplier = self._clip(norm_sq, inv_scale)
        numbers = self._numbers(multiplier, found_inf)
        for call in calls:
            for param, state in zip(call.params, call.states, strict=True):
                if self._kind.master == "fp32" and "master" in state:
                    follow_parameter(param, state["master"])
            call.run(numbers)

    def _clip(self, norm_sq: Tensor, inv_scale: Tensor | None) -> Tensor:
        self.total_norm = norm_sq.sqrt()
        multiplier: Tensor = torch.ops.fulgurite.clip_multiplier(
            norm_sq, self._max_grad_norm, inv_scale=inv_scale
        )
        return multiplier

    def _numbers(self, multiplier: Tensor | None, found_inf: Tensor | None) -> Numbers:
        device = self._device()
        self.skipped = (
            torch.zeros((), dtype=torch.float32, device=device)
            if found_inf is None
            else (found_inf > 0).float()
        )
        hyper = _groups.hyper(self.param_groups, device)
        return Numbers(hyper, multiplier, found_inf, self._next_seed(device))

    def _current_plan(self) -> Plan:
        """The plan of the last step if it still holds, else a new one. Collects the gradients."""
        copies = self._copies or []
        if self._plan is None or not self._plan.holds(self, copies):
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

    # ---- what a LossScaler asks ----

    def _grad_stats(
        self, inv_scale: Tensor, *, step_follows: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``grad_stats`` of the gradients in order. A step that follows at once clips by this norm,
        until ``_forget_gradients``.
        """
        plan = self._current_plan()
        try:
            stats = plan.grad_stats(inv_scale)
        except BaseException:
            plan.drop_gradients()
            raise
        if step_follows and self._steps_at_once():
            plan.look()
            self._norm_sq = stats[1]
        else:
            plan.drop_gradients()
        return stats

    def _steps_at_once(self) -> bool:
        """Between a scaler's look and the step runs no code of the user's, who could write
        gradients where no version tells.
        """
        patch = self.__dict__.get("step")  # schedulers count steps by one
        return not (
            self._optimizer_step_pre_hooks
            or _global_optimizer_pre_hooks
            or type(self).step is not AdamW.step
            or (patch is not None and getattr(patch, "__wrapped__", None) is not AdamW.step)
            or hasattr(self, "grad_scale")
        )

    def _forget_gradients(self) -> None:
        """The step that was to follow is over, or never came."""
        if self._norm_sq is not None:
            self._norm_sq = None
            if self._plan is not None:
                self._plan.drop_gradients()

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
        first = self.param_groups[0]
        if first.get("rounding_seed") is None:
            return None
        step = first["rounding_step"] + 1
        for group in self.param_groups:
            group["rounding_step"] = step
        numbers = [first["rounding_seed"], step]
        return torch.tensor(numbers, dtype=torch.int64, device=device)

    # ---- checkpoints ----

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class, of torch.optim.AdamW or of torch.optim.Adam.

        Moments keep the precision they were saved with (torch's own loading rounds them to the
        parameter's dtype). Masters tell by their dtype what they are: a float32 master that is
        loaded where ``master="split"`` sets the parameter to its nearest bfloat16, ties away from
        zero; a split one that is loaded where ``master="fp32"`` is joined with the parameter, so
        load the model first. What the checkpoint lacks (masters, averages) starts from the
        parameters at the next step, so there the order is free. Moments become codes, or codes
        moments, where ``state_dtype`` asks for it. ``decoupled`` stays what the optimizer was made
        with; entries that a group of the checkpoint lacks stay as they are.

        Raises:
            ValueError: the checkpoint has other groups, or states that are not Adam's.
            NotImplementedError: its groups need what ``state_dtype="8bit"`` cannot do. Nothing has
                been loaded then.
        """
        saved: dict[str, Any] = {}

        def remember(_: Optimizer, given: dict[str, Any]) -> None:
            saved.update(given)
            self._check_loadable(given)

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

    def _check_loadable(self, saved: dict[str, Any]) -> None:
        """What torch does not check, before anything is loaded."""
        for group, own in zip(saved["param_groups"], self.param_groups, strict=False):
            loaded = {**group, "params": own["params"]}
            _groups.fill(loaded, own, self.defaults)
            _groups.check_numbers(loaded)
            self._check_group(loaded)
            for i in group["params"]:
                check_saved(saved["state"].get(i))

    @torch.no_grad()
    def _restore(self, saved: dict[str, Any]) -> None:
        """States again, from what was saved: torch has cast them to the parameters' dtypes."""
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        for i, param in zip(ids, self._parameters(), strict=True):
            if saved["state"].get(i):
                self._kind.restore(param, self.state[param], saved["state"][i])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in _OPTIONS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups")  # None where this is unpickled
        super().__setstate__(state)
        self._forget()
        for group, own in zip(self.param_groups, before or self.param_groups, strict=True):
            _groups.fill(group, own, self.defaults)
