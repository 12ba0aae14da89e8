"""AdamW, shaped like torch.optim.AdamW, over one fused operator for all parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

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
_OPTIONS = ("_master", "_state_dtype", "_copies", "_max_grad_norm", "_step_supports_amp_scaling")


class _Mode(NamedTuple):
    """What the tensors of one call of the operator share."""

    decoupled: bool
    amsgrad: bool
    maximize: bool


class _Call:
    """The lists of one call of the operator."""

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []
        self.copies: list[Tensor] = []
        self.groups: list[int] = []

    def optional(self, key: str) -> list[Tensor]:
        """A state that only some tensors have, with empty tensors for the others."""
        found = [state.get(key) for state in self.states]
        if found.count(None) == len(found):
            return []
        return [torch.empty(0) if tensor is None else tensor for tensor in found]


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
            ``torch.bfloat16`` stores them rounded.
        copies: one tensor per parameter, over all groups in order: receives a low-precision copy of
            each new value.
        ema_decay: keep a moving average ``ema += (1 − ema_decay)·(p − ema)`` of the parameters in
            the state ``ema``, float32.
        max_grad_norm: clip the norm over all gradients to this, inside the step: gradients stay as
            they are.
        stochastic_rounding: not supported yet.
        fused_unscale: True: under a gradient scaler the step itself unscales, and skips where
            gradients overflowed. False: the scaler does both, for frameworks that clip or watch for
            skipped steps themselves.

    Attributes:
        total_norm: norm of all gradients of the last step, unscaled, before clipping, a float64
            tensor; None without ``max_grad_norm``.
        skipped: 1 if the last step was skipped because a scaler found an overflow, else 0, a
            float32 tensor.

    State keys are torch's (``step``, ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``), plus
    ``master`` and ``ema``. ``load_state_dict`` reads torch.optim.AdamW's checkpoints and the other
    way round; moments and masters keep their dtype.

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
        if state_dtype == "8bit":
            raise NotImplementedError(
                "fulgurite.optim.AdamW: state_dtype '8bit' is not supported yet"
            )
        if stochastic_rounding:
            raise NotImplementedError(
                "fulgurite.optim.AdamW: stochastic_rounding is not supported yet"
            )
        self._master = master
        self._state_dtype = cast("torch.dtype | None", state_dtype)
        self._copies = None if copies is None else list(copies)
        self._max_grad_norm = max_grad_norm
        self._step_supports_amp_scaling = fused_unscale
        self._norm_sq: Tensor | None = (
            None  # from fulgurite's LossScaler, which has seen the gradients already
        )
        self.total_norm = None
        self.skipped = torch.zeros(())
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
        super().__init__(params, defaults)
        parameters = sum(len(group["params"]) for group in self.param_groups)
        if self._copies is not None and len(self._copies) != parameters:
            raise ValueError(
                f"fulgurite.optim.AdamW: expected copies for {parameters} parameters,"
                f" got {len(self._copies)}"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch's optimizers do."""
        if "decoupled" in param_group:  # torch's name in a group is longer
            param_group["decoupled_weight_decay"] = param_group.pop("decoupled")
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if self._master is not None and param.dtype == torch.float16:
                self.param_groups.pop()
                raise NotImplementedError(
                    "fulgurite.optim.AdamW: master is not supported with float16 parameters;"
                    " keep them in float32 under autocast"
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
        calls, hyper = self._gather()
        grads = [grad for call in calls.values() for grad in call.grads]
        # A gradient scaler leaves these on the optimizer for the time of the call.
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if not isinstance(found_inf, Tensor):  # GradScaler's sum over no gradients is the number 0
            found_inf = None
        norm_sq, self._norm_sq = self._norm_sq, None
        inv_scale = None if grad_scale is None else grad_scale.double().reciprocal().float()
        multiplier = inv_scale
        if self._max_grad_norm is not None:
            if norm_sq is None:
                _, norm_sq, _ = torch.ops.fulgurite.grad_stats(grads, inv_scale=inv_scale)
            multiplier = torch.ops.fulgurite.clip_multiplier(
                norm_sq, self._max_grad_norm, inv_scale=inv_scale
            )
            self.total_norm = norm_sq.sqrt()
        self.skipped = torch.zeros(()) if found_inf is None else (found_inf > 0).float()
        for mode, call in calls.items():
            torch.ops.fulgurite.adamw_(
                call.params,
                call.grads,
                [state["exp_avg"] for state in call.states],
                [state["exp_avg_sq"] for state in call.states],
                [state["max_exp_avg_sq"] for state in call.states] if mode.amsgrad else [],
                call.optional("master"),
                call.copies,
                call.optional("ema"),
                [state["step"] for state in call.states],
                hyper,
                call.groups,
                grad_multiplier=multiplier,
                found_inf=found_inf,
                decoupled=mode.decoupled,
                amsgrad=mode.amsgrad,
                maximize=mode.maximize,
            )

    def _gather(self) -> tuple[dict[_Mode, _Call], Tensor]:
        """The lists of every call, and the numbers of every group (groups, 6)."""
        calls: dict[_Mode, _Call] = {}
        rows = []
        copies = iter(self._copies or ())
        for index, group in enumerate(self.param_groups):
            rows.append(_numbers(group))
            params = [param for param in group["params"] if param.grad is not None]
            mode = _Mode(group["decoupled_weight_decay"], group["amsgrad"], group["maximize"])
            call = calls.setdefault(mode, _Call())
            call.params += params
            call.grads += _dense([param.grad for param in params])
            call.groups += [index] * len(params)
            states = [self.state[param] for param in params]
            for param, state in zip(params, states, strict=True):
                if not state:
                    self._start(param, group, state)
            call.states += states
            if self._copies is not None:
                own = zip(group["params"], copies, strict=False)
                call.copies += [copy for param, copy in own if param.grad is not None]
        calls = {mode: call for mode, call in calls.items() if call.params}
        device = next(iter(calls.values())).params[0].device if calls else None
        return calls, torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, 6)

    def _start(self, param: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """The state of a parameter before its first step."""
        dtype = self._moment_dtype(param)
        state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        for key in ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ()):
            state[key] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
        self._complete(param, group, state)

    def _complete(self, param: Tensor, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Add what a state lacks: all of it before the first step, some of it after loading torch's
        checkpoint.
        """
        if self._master is not None and param.dtype == torch.bfloat16 and "master" not in state:
            state["master"] = (
                torch.zeros_like(param, dtype=torch.int16)
                if self._master == "split"
                else param.detach().float()
            )
        if group["ema_decay"] is not None and "ema" not in state:
            state["ema"] = self._value(param, state).to(_wide(param), copy=True)

    def _value(self, param: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The exact value of a parameter."""
        master = state.get("master")
        if master is None:
            return param.detach()
        if master.dtype == torch.int16:
            return cast(Tensor, torch.ops.fulgurite.join_master(param.detach(), master))
        return master

    def _moment_dtype(self, param: Tensor) -> torch.dtype:
        if param.dtype == torch.float64:
            return torch.float64
        return self._state_dtype or torch.float32

    # ---- checkpoints ----

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of torch.optim.AdamW.

        Moments keep the precision they were saved with (torch's own loading rounds them to the
        parameter's dtype). A float32 master that is loaded where ``master="split"`` sets the
        parameter to its nearest bfloat16, ties away from zero; a split one that is loaded where
        ``master="fp32"`` is joined with the parameter, so load the model first.
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
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        owners = [(group, param) for group in self.param_groups for param in group["params"]]
        for i, (group, param) in zip(ids, owners, strict=True):
            if i not in saved["state"]:
                continue
            state = self.state[param]
            for key, value in saved["state"][i].items():
                if isinstance(value, Tensor):
                    state[key] = self._restored(key, value, param)
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(param.device)
            if group["amsgrad"] and "max_exp_avg_sq" not in state:
                state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
            self._restore_master(param, state)
            self._complete(param, group, state)

    def _restored(self, key: str, value: Tensor, param: Tensor) -> Tensor:
        value = value.detach()
        if key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            return value.to(param.device, self._moment_dtype(param), copy=True)
        return value.to(param.device, copy=True)

    def _restore_master(self, param: Tensor, state: dict[str, Tensor]) -> None:
        master = state.get("master")
        if master is None:
            return
        if self._master is None or param.dtype != torch.bfloat16:
            del state["master"]
        elif self._master == "fp32" and master.dtype == torch.int16:
            state["master"] = torch.ops.fulgurite.join_master(param, master)
        elif self._master == "split" and master.dtype != torch.int16:
            high, state["master"] = torch.ops.fulgurite.split_master(master.float())
            param.copy_(high)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in _OPTIONS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_norm_sq", None)
        self.__dict__.setdefault("total_norm", None)
        self.__dict__.setdefault("skipped", torch.zeros(()))
        for group in self.param_groups:
            for key in ("amsgrad", "maximize", "decoupled_weight_decay", "ema_decay", *_TORCH_KEYS):
                group.setdefault(key, self.defaults[key])


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


def _dense(grads: list[Tensor]) -> list[Tensor]:
    for grad in grads:
        if grad.is_sparse:
            raise RuntimeError("fulgurite.optim.AdamW: expected dense gradients, got a sparse one")
    return grads


def _wide(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32
