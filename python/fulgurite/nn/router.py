"""The router of a mixture of experts: who computes a token, with what weight, and at what load."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from fulgurite._config import runtime
from fulgurite._numbers import integer, number, optional_number
from fulgurite.nn import functional as F
from fulgurite.nn.counted import Counted
from fulgurite.nn.functional._draw import uniform_like
from fulgurite.nn.functional._inputs import check_dense, check_float_input
from fulgurite.nn.load import LoadStatistics, load_statistics


def jittered(x: Tensor, jitter: float) -> Tensor:
    """x times uniform noise in [1 − jitter, 1 + jitter]."""
    return x * uniform_like(x, 1.0 - jitter, 1.0 + jitter)


def _check_names(choices: dict[str, str], **names: str) -> None:
    """Against the tables that the operators read."""
    tables = runtime().choices()
    for option, name in names.items():
        known = tables[choices[option]]
        if name not in known:
            raise ValueError(f"Router: expected {option} among {known}, got {name!r}")


class Router(Counted):
    """Chooses ``top_k`` of E experts for every token, on :func:`fulgurite.nn.functional.moe_route`.

    ::

        logits       = weight · x (+ bias)           in float32
        weights, ids = moe_route(logits)             with a capacity, what finds no room is dropped

    Args:
        dim: width H of a token.
        num_experts: E.
        top_k: experts per token K, 1 ≤ K ≤ E.
        bias: add a learned bias to the logits (gpt-oss).
        score: "softmax", "softmax_topk", "sigmoid" or "sqrtsoftplus".
        renormalize: make the K weights of a token sum to ``routed_scale``.
        eps: added to the sum that sigmoid kinds are renormalised by.
        routed_scale: factor on the weights.
        num_groups, top_groups, group_score: choose inside the best ``top_groups`` of ``num_groups``
            groups of experts only, by the sum of their best two ("top2") or their best ("max").
        selection_bias: offset the choice of experts, not their weights, by a buffer that
            :meth:`update_bias` moves (the loss-free balance of DeepSeek-V3). Not with a softmax
            score. A ``bias_update_rate`` other than 0 implies it.
        bias_update_rate, bias_rule, bias_center: how :meth:`update_bias` moves it; see
            :func:`fulgurite.nn.functional.moe_update_bias_`.
        capacity: assignments that an expert takes from one call; None for no limit.
        capacity_factor: the same as a multiple of its even share: ⌈factor · T·K/E⌉.
        drop: who is served first: "token", "choice", "weight" or "priority"; see
            :func:`fulgurite.nn.functional.moe_plan`.
        per_sequence: count the capacity within each sequence of x (..., N, H), not over all tokens.
        jitter: in training, multiply x by uniform noise in [1 − jitter, 1 + jitter] (Switch).
        random_second: in training, use the second of two experts at random, with probability
            min(1, 2·w₂ / (w₁ + w₂)) (GShard); it takes no place where it is not used.
        balance_loss_weight, balance_loss_kind: a balance loss in :attr:`aux_loss`; see
            :func:`fulgurite.nn.functional.moe_balance_loss`. "sequence" balances each sequence of x
            (..., N, H).
        z_loss_weight: factor of the router z-loss in :attr:`aux_loss`.
        device, dtype: of the parameters. ``selection_bias`` is float32.

    Parameters: ``weight`` (E, H) and ``bias`` (E) or None. Buffer: ``selection_bias`` (E) float32,
    whatever the module is cast to, or None. Counts, in the state dict but no buffers, so that
    data-parallel wrappers leave each process its own: ``load`` (E) int64, the assignments that each
    expert was chosen for in training since the last :meth:`update_bias`; ``dropped`` 0-dim int64,
    how many of them found no room. A forward that checkpointing repeats counts once.

    After a forward in training mode, ``aux_loss`` is its loss, a 0-dim tensor to add to the model's
    (0 after one in eval mode, which counts nothing). Where a layer runs more than once before the
    backward, :func:`fulgurite.nn.aux_losses` has the sum. Both have their gradient under either
    kind of ``torch.utils.checkpoint``.

    Raises:
        ValueError: arguments that do not fit together.

    >>> router = Router(16, num_experts=8, top_k=2, capacity_factor=1.0, z_loss_weight=1e-3)
    >>> weights, ids = router(torch.randn(4, 6, 16))
    >>> weights.shape, ids.shape
    (torch.Size([24, 2]), torch.Size([24, 2]))
    >>> int(router.load.sum())  # 24 tokens, two experts each
    48
    >>> int(router.dropped) == int((ids < 0).sum())
    True
    """

    __constants__: ClassVar = [
        "top_k",
        "num_experts",
        "score",
        "renormalize",
        "eps",
        "routed_scale",
        "num_groups",
        "top_groups",
        "group_score",
        "bias_update_rate",
        "bias_rule",
        "bias_center",
        "capacity",
        "capacity_factor",
        "drop",
        "per_sequence",
        "jitter",
        "random_second",
        "balance_loss_weight",
        "balance_loss_kind",
        "z_loss_weight",
    ]

    bias: Tensor | None
    selection_bias: Tensor | None
    capacity: int | None
    capacity_factor: float | None

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        bias: bool = False,
        score: str = "softmax",
        renormalize: bool = True,
        eps: float = 1e-20,
        routed_scale: float = 1.0,
        num_groups: int = 1,
        top_groups: int = 1,
        group_score: str = "top2",
        selection_bias: bool = False,
        bias_update_rate: float = 0.0,
        bias_rule: str = "sign",
        bias_center: bool = False,
        capacity: int | None = None,
        capacity_factor: float | None = None,
        drop: str = "token",
        per_sequence: bool = False,
        jitter: float = 0.0,
        random_second: bool = False,
        balance_loss_weight: float = 0.0,
        balance_loss_kind: str = "switch",
        z_loss_weight: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "Router"
        dim, num_experts = (
            integer(name, option, value, 1)
            for option, value in (("dim", dim), ("num_experts", num_experts))
        )
        top_k = integer(name, "top_k", top_k, 1, num_experts)
        num_groups = integer(name, "num_groups", num_groups, 1)
        top_groups = integer(name, "top_groups", top_groups, 1, num_groups)
        self.jitter = number(name, "jitter", jitter, at_least=0, below=1)
        eps, bias_update_rate, balance_loss_weight, z_loss_weight = (
            number(name, option, value, at_least=0)
            for option, value in (
                ("eps", eps), ("bias_update_rate", bias_update_rate),
                ("balance_loss_weight", balance_loss_weight), ("z_loss_weight", z_loss_weight),
            )
        )  # fmt: skip
        selection_bias = selection_bias or bias_update_rate != 0.0
        if selection_bias and score.startswith("softmax"):
            raise ValueError(f"Router: a selection bias needs a sigmoid score, got score={score!r}")
        if random_second and top_k != 2:
            raise ValueError(f"Router: random_second needs top_k=2, got {top_k}")
        if capacity is not None and capacity_factor is not None:
            raise ValueError("Router: expected a capacity or a capacity_factor, got both")
        if capacity is not None:
            capacity = integer(name, "capacity", capacity, 0)
        _check_names(
            {"score": "moe_route.score", "group_score": "moe_route.group_score",
             "drop": "moe_plan.drop", "bias_rule": "moe_update_bias_.rule",
             "balance_loss_kind": "moe_balance_loss.kind"},
            score=score, group_score=group_score, drop=drop, bias_rule=bias_rule,
            balance_loss_kind=balance_loss_kind,
        )  # fmt: skip
        if num_experts % num_groups or num_experts // num_groups * top_groups < top_k:
            raise ValueError(
                f"Router: expected num_groups to divide {num_experts} experts and top_groups of "
                f"them to hold {top_k}, got {num_groups} and {top_groups}"
            )
        self.num_experts, self.top_k = num_experts, top_k
        self.score, self.renormalize, self.eps = score, renormalize, eps
        self.routed_scale = number(name, "routed_scale", routed_scale)
        self.num_groups, self.top_groups, self.group_score = num_groups, top_groups, group_score
        self.bias_update_rate, self.bias_rule = bias_update_rate, bias_rule
        self.bias_center = bias_center
        self.capacity = capacity
        self.capacity_factor = optional_number(name, "capacity_factor", capacity_factor, at_least=0)
        self.drop, self.per_sequence = drop, per_sequence
        self.random_second = random_second
        self.balance_loss_weight, self.balance_loss_kind = balance_loss_weight, balance_loss_kind
        self.z_loss_weight = z_loss_weight
        self.weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        logit_bias = torch.empty(num_experts, device=device, dtype=dtype) if bias else None
        self.bias = None if logit_bias is None else nn.Parameter(logit_bias)
        offsets = torch.zeros(num_experts, device=device, dtype=torch.float32)
        self.register_buffer("selection_bias", offsets if selection_bias else None)
        self.start_counts(num_experts, device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1/H); bias, selection bias, counts and losses are 0."""
        nn.init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)
        for zero in (self.bias, self.selection_bias):
            if zero is not None:
                nn.init.zeros_(zero)
        self.reset_counts()

    def logits(self, x: Tensor) -> Tensor:
        """Logits (T, E) of tokens x (T, H): float32 (float64 for float64), autocast or not.

        In 16 bits, scores of neighbouring experts tie and the choice becomes noise.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        bias = self.bias
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript cannot leave an autocast region that it did not enter; autocast never
            # touches float64.
            wide = None if bias is None else bias.double()
            return nn.functional.linear(x.double(), self.weight.double(), wide).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            wide = None if bias is None else bias.to(dtype)
            return nn.functional.linear(x.to(dtype), self.weight.to(dtype), wide)

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route every token of x (..., H).

        Args:
            x: (..., N, H); only the capacity and the balance of sequences ask where one ends.
            token_mask: (..., N) bool; False: no expert.

        Returns:
            weights (T, K), float32 (float64 for float64), and ids (T, K) int32, T the tokens of x
            in order. What was masked, dropped or not drawn has weight 0 and id −1.

        Raises:
            TypeError, RuntimeError (shapes): an x of another width, a mask that is not x's.
        """
        check_tokens("Router", x, self.weight.shape[1], token_mask)
        tokens = x.reshape(-1, x.shape[-1])  # (T, H)
        mask = None if token_mask is None else token_mask.reshape(-1)
        if mask is not None:  # in the gradient of the weight, 0 · NaN would be NaN
            tokens = tokens.masked_fill(~mask[:, None], 0.0)
        if self.training and self.jitter > 0.0:
            tokens = jittered(tokens, self.jitter)
        logits = self.logits(tokens)
        weights, ids, counts = F.moe_route(
            logits,
            self.top_k,
            bias=self.selection_bias,
            score=self.score,
            n_group=self.num_groups,
            topk_group=self.top_groups,
            group_score=self.group_score,
            renormalize=self.renormalize,
            eps=self.eps,
            scale=self.routed_scale,
            token_mask=mask,
        )
        length = x.shape[-2] if x.dim() > 1 else 1
        chosen = ids
        if mask is not None:
            ids = ids.masked_fill(~mask[:, None], -1)
        if self.training and self.random_second:
            weights, ids = draw_second(weights, ids)
        served = ids
        if self.capacity is not None or self.capacity_factor is not None:
            weights, ids = self.within_capacity(weights, ids, length)
        if self.training:  # last: a call that raises has counted nothing
            loss = self.weighted_losses(logits, chosen, mask, length)
            dropped = (served >= 0).sum() - (ids >= 0).sum()
            if torch.jit.is_scripting():  # type: ignore[attr-defined]
                self.load += counts
                self.dropped += dropped
                self.aux_loss = loss
            else:
                weights = self.note(weights, counts, dropped, loss)
        else:
            self.note_evaluation(weights)
        return weights, ids

    def within_capacity(self, weights: Tensor, ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The same, with weight 0 and id −1 where an expert is full.

        Sequences have ``length`` tokens.
        """
        T, K = ids.shape
        places, groups, slots = T, 1, ids
        if self.per_sequence:  # every sequence has experts of its own
            places, groups = length, T // max(length, 1)
            first = self.sequence_ids(T, length, ids)[:, None] * self.num_experts
            slots = torch.where(ids < 0, ids, ids + first.to(ids.dtype))
        capacity = self.capacity
        if capacity is None:
            factor = self.capacity_factor
            assert factor is not None
            capacity = math.ceil(factor * (places * K) / self.num_experts)
        num_slots = groups * self.num_experts
        inverse = F.moe_plan(slots, num_slots, capacity, self.drop, weights.detach())[1]
        full = inverse < 0
        return weights.masked_fill(full, 0.0), ids.masked_fill(full, -1)

    def sequence_ids(self, T: int, length: int, like: Tensor) -> Tensor:
        """(T) int64: the sequence of each token."""
        return torch.arange(T, dtype=torch.int64, device=like.device) // max(length, 1)

    def weighted_losses(
        self, logits: Tensor, ids: Tensor, mask: Tensor | None, length: int
    ) -> Tensor:
        """``balance_loss_weight · balance + z_loss_weight · z`` of one batch, 0-dim."""
        loss = torch.zeros((), device=logits.device, dtype=logits.dtype)
        if self.balance_loss_weight != 0.0:
            sequences: Tensor | None = None
            if self.balance_loss_kind == "sequence":
                sequences = self.sequence_ids(ids.shape[0], length, ids)
            balance = F.moe_balance_loss(
                logits,
                ids,
                score=self.score,
                kind=self.balance_loss_kind,
                sequence_ids=sequences,
                token_mask=mask,
            )
            loss = loss + self.balance_loss_weight * balance
        if self.z_loss_weight != 0.0:
            loss = loss + self.z_loss_weight * F.moe_z_loss(logits, token_mask=mask)
        return loss

    @torch.jit.export
    def update_bias(self) -> None:
        """Move ``selection_bias`` by the load since the last call, then start counting anew.

        In data-parallel training, all-reduce ``load`` first.
        """
        bias = self.selection_bias
        if bias is not None:
            F.moe_update_bias_(
                bias, self.load, self.bias_update_rate, self.bias_rule, self.bias_center
            )
        self.load.zero_()
        self.dropped.zero_()

    @torch.jit.unused
    def load_statistics(self) -> LoadStatistics:
        """How evenly the assignments since the last :meth:`update_bias` were spread."""
        return load_statistics(self.load, self.dropped)

    def extra_repr(self) -> str:
        num_experts, dim = self.weight.shape
        limit = self.capacity if self.capacity_factor is None else f"{self.capacity_factor}·T·K/E"
        room = "" if limit is None else f", capacity={limit}, drop={self.drop!r}"
        return (
            f"dim={dim}, num_experts={num_experts}, top_k={self.top_k}, score={self.score!r}{room}"
        )


def draw_second(weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of weights and ids (T, 2), the second ones at random: the less they weigh, the less often."""
    first, second = weights.detach().unbind(1)
    unused = 2.0 * second <= uniform_like(first) * (first + second)
    out = torch.stack([torch.zeros_like(unused), unused], dim=1)
    return weights.masked_fill(out, 0.0), ids.masked_fill(out, -1)


def check_tokens(name: str, x: Tensor, dim: int, token_mask: Tensor | None) -> None:
    """Raise unless x is (..., dim) of floats and the mask, if there is one, (...) bool."""
    check_float_input(name, "x", x)
    if x.dim() < 1 or x.shape[-1] != dim:
        raise RuntimeError(f"{name}: expected x of shape [..., {dim}], got {list(x.shape)}")
    if token_mask is not None:
        check_dense(name, "token_mask", token_mask)
        if token_mask.dtype != torch.bool:
            raise TypeError(f"{name}: expected token_mask of torch.bool, got {token_mask.dtype}")
        if token_mask.shape != x.shape[:-1]:
            raise RuntimeError(
                f"{name}: expected token_mask of shape {list(x.shape[:-1])}, "
                f"got {list(token_mask.shape)}"
            )
