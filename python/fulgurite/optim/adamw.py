"""AdamW, shaped like torch.optim.AdamW, over one fused operator for all parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _global_optimizer_pre_hooks

from fulgurite._numbers import optional_number
from fulgurite.optim import _groups
from fulgurite.optim._parts import overflow_of_a_part, refuse_sharing_rank
from fulgurite.optim._saved import check_form, check_state
from fulgurite.optim._states import StateKind
from fulgurite.optim._steps import Steps

__all__ = ["AdamW"]

_MASTERS = (None, "fp32", "split")

# What an optimizer keeps beside defaults, state and groups, which is all that torch pickles.
_OPTIONS = ("_kind", "_copies", "_max_grad_norm", "_step_supports_amp_scaling")


class AdamW(Steps):
    r"""AdamW that clips, unscales and keeps masters in one pass; see docs/howto/optimizer.md.

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
    optimizer in a group, unless it says what the optimizer says, and a misspelt option raise
    ValueError.

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
        max_grad_norm = optional_number(
            _groups.OWNER, "max_grad_norm", max_grad_norm, at_least=0, finite=False
        )
        if max_grad_norm is not None:
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch's optimizers do."""
        if isinstance(param_group, dict):  # else torch says what is wrong
            _groups.check_scope(param_group, self._scope())
            _groups.check_names(param_group)
            _groups.drop_scope(param_group)
            if "decoupled" in param_group:  # torch's name in a group is longer
                param_group["decoupled_weight_decay"] = param_group.pop("decoupled")
        super().add_param_group(param_group)
        try:
            _groups.check_numbers(self.param_groups[-1])
            self._check_group(self.param_groups[-1])
        except (ValueError, TypeError, NotImplementedError):
            self.param_groups.pop()
            raise

    # ---- what a LossScaler asks ----

    def _grad_stats(
        self, inv_scale: Tensor, *, step_follows: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``grad_stats`` of the gradients in order. A step that follows at once clips by this norm,
        until ``_forget_gradients``.
        """
        _groups.rows(self.param_groups)  # or an error, before states are made
        plan = self._current_plan()
        if plan is None:
            raise overflow_of_a_part()
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
            ValueError: this is no checkpoint, or one with other groups, with states that are not
                Adam's, of parameters of other shapes, or with steps that are no counts.
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
        check_form(saved)
        if [len(group["params"]) for group in saved["param_groups"]] != [
            len(group["params"]) for group in self.param_groups
        ]:
            return  # torch says so
        for group, own in zip(saved["param_groups"], self.param_groups, strict=True):
            loaded = {**group, "params": own["params"]}
            _groups.fill(loaded, own, self.defaults)
            _groups.check_numbers(loaded)
            self._check_group(loaded)
            for i, param in zip(group["params"], own["params"], strict=True):
                check_state(i, saved["state"].get(i), param)

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
