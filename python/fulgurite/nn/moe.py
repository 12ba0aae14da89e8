"""Mixture-of-experts feed-forward: router, routed and shared experts, losses and load."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fulgurite.nn import functional as F


class MoE(nn.Module):
    """Top-k mixture of gated (SwiGLU) experts, without a capacity: no token is ever dropped.

    ::

        logits = router · x                                                  in float32
        y      = Σ_{e in top k} w_e · out_e(silu(gate_e x) · up_e x)  +  Σ_{shared s} ffn_s(x)

    Shared experts are experts that every token is sent to with weight 1. They lie behind the routed
    ones in the stacked weights, so one fused call computes both.

    The loss-free balance of DeepSeek-V3: with ``bias_update_rate`` the choice of experts (not their
    weights) is offset by ``selection_bias``; call :meth:`update_bias` once after each optimizer
    step and the bias of underloaded experts rises by the rate, that of overloaded ones falls.

    Args:
        dim: width H of the input and of the output.
        hidden_dim: hidden width I of one expert.
        num_experts: routed experts E.
        top_k: routed experts per token K, 1 ≤ K ≤ E.
        num_shared_experts: experts S that every token uses.
        score: "softmax", "softmax_topk" or "sigmoid"; see
            :func:`fulgurite.nn.functional.moe_route`.
        renormalize: make the K weights of a token sum to ``routed_scale``.
        routed_scale: factor on the routed weights.
        num_groups, top_groups: choose inside the best ``top_groups`` of ``num_groups`` only.
        bias_update_rate: step of the selection bias; 0 for no bias. Needs ``score="sigmoid"``.
        balance_loss_weight: factor of the Switch balance loss in :attr:`aux_loss`.
        z_loss_weight: factor of the router z-loss in :attr:`aux_loss`.
        device, dtype: of the parameters. ``selection_bias`` is float32.

    Parameters: ``router`` (E, H), ``w_in`` (E + S, 2·I, H) holding gate then up rows, ``w_out``
    (E + S, H, I). Buffers: ``selection_bias`` (E), and ``load`` (E) int64, the assignments per
    expert since the last :meth:`update_bias`.

    After a forward in training mode, ``aux_loss`` is the 0-dim tensor to add to the loss
    (:func:`aux_losses` sums those of a model); in eval mode it is 0 and ``load`` is left alone.

    Raises:
        ValueError: arguments that do not fit together.

    >>> moe = MoE(16, hidden_dim=32, num_experts=8, top_k=2, score="sigmoid", bias_update_rate=1e-3)
    >>> moe(torch.randn(4, 5, 16)).shape
    torch.Size([4, 5, 16])
    >>> int(moe.load.sum())  # 20 tokens, two experts each
    40
    >>> moe.update_bias()
    >>> int(moe.load.sum())
    0
    """

    __constants__: ClassVar = [
        "top_k",
        "num_experts",
        "num_shared_experts",
        "score",
        "renormalize",
        "routed_scale",
        "num_groups",
        "top_groups",
        "bias_update_rate",
        "balance_loss_weight",
        "z_loss_weight",
    ]

    selection_bias: Tensor | None
    load: Tensor
    aux_loss: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        num_shared_experts: int = 0,
        score: str = "softmax",
        renormalize: bool = True,
        routed_scale: float = 1.0,
        num_groups: int = 1,
        top_groups: int = 1,
        bias_update_rate: float = 0.0,
        balance_loss_weight: float = 0.0,
        z_loss_weight: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"MoE: expected top_k in [1, {num_experts}], got {top_k}")
        if num_shared_experts < 0:
            raise ValueError(
                f"MoE: expected num_shared_experts of at least 0, got {num_shared_experts}"
            )
        if bias_update_rate != 0.0 and score.startswith("softmax"):
            raise ValueError(f"MoE: a selection bias needs a sigmoid score, got score={score!r}")
        self.top_k = top_k
        self.num_experts = num_experts
        self.num_shared_experts = num_shared_experts
        self.score = score
        self.renormalize = renormalize
        self.routed_scale = routed_scale
        self.num_groups = num_groups
        self.top_groups = top_groups
        self.bias_update_rate = bias_update_rate
        self.balance_loss_weight = balance_loss_weight
        self.z_loss_weight = z_loss_weight
        stacked = num_experts + num_shared_experts
        self.router = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.w_in = nn.Parameter(
            torch.empty(stacked, 2 * hidden_dim, dim, device=device, dtype=dtype)
        )
        self.w_out = nn.Parameter(torch.empty(stacked, dim, hidden_dim, device=device, dtype=dtype))
        if bias_update_rate != 0.0:
            self.register_buffer(
                "selection_bias", torch.zeros(num_experts, device=device, dtype=torch.float32)
            )
        else:
            self.register_buffer("selection_bias", None)
        self.register_buffer("load", torch.zeros(num_experts, device=device, dtype=torch.int64))
        self.register_buffer("aux_loss", torch.zeros((), device=device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight from N(0, 1/fan_in)."""
        for weight in (self.router, self.w_in, self.w_out):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def router_logits(self, x: Tensor) -> Tensor:
        """Router logits (T, E) of tokens x (T, H): float32 (float64 for float64), autocast or not.

        In 16 bits, scores of neighbouring experts tie and the choice becomes noise.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript cannot leave an autocast region that it did not enter; autocast never
            # touches float64.
            return nn.functional.linear(x.double(), self.router.double()).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.to(dtype), self.router.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Route every token of x (..., H) and add up its experts.

        Returns:
            (..., H), in x's dtype (autocast's, inside autocast).
        """
        tokens = x.reshape(-1, x.shape[-1])  # (T, H)
        logits = self.router_logits(tokens)  # (T, E)
        weights, ids, counts = F.moe_route(
            logits,
            self.top_k,
            bias=self.selection_bias,
            score=self.score,
            n_group=self.num_groups,
            topk_group=self.top_groups,
            renormalize=self.renormalize,
            scale=self.routed_scale,
        )
        if self.training:
            self.load += counts
            self.aux_loss = self.weighted_losses(logits, ids)
        if self.num_shared_experts > 0:
            weights, ids = self.with_shared_experts(weights, ids)
        y = F.moe_experts(tokens, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)

    def with_shared_experts(self, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Send every token to the shared experts too: (T, K) becomes (T, K + S)."""
        first, shared = self.num_experts, self.num_shared_experts
        shared_ids = torch.arange(first, first + shared, device=ids.device, dtype=ids.dtype)
        ids = torch.cat([ids, shared_ids.expand(ids.shape[0], shared)], dim=1)
        weights = torch.cat([weights, weights.new_ones(weights.shape[0], shared)], dim=1)
        return weights, ids

    def weighted_losses(self, logits: Tensor, ids: Tensor) -> Tensor:
        """``balance_loss_weight · balance + z_loss_weight · z`` of one batch, 0-dim."""
        loss = torch.zeros((), device=logits.device, dtype=logits.dtype)
        if self.balance_loss_weight != 0.0:
            balance = F.moe_balance_loss(logits, ids, score=self.score)
            loss = loss + self.balance_loss_weight * balance
        if self.z_loss_weight != 0.0:
            loss = loss + self.z_loss_weight * F.moe_z_loss(logits)
        return loss

    @torch.jit.export
    def update_bias(self) -> None:
        """Move ``selection_bias`` by the load since the last call, then start counting anew.

        In data-parallel training, all-reduce ``load`` first.
        """
        bias = self.selection_bias
        if bias is not None:
            F.moe_update_bias_(bias, self.load, self.bias_update_rate)
        self.load.zero_()

    @torch.jit.unused
    def __getstate__(self) -> dict[str, Any]:
        # The last batch's loss holds the graph of that batch, which cannot be copied or saved.
        state = self.__dict__.copy()
        state["_buffers"] = {**self._buffers, "aux_loss": torch.zeros_like(self.aux_loss.detach())}
        return state

    def extra_repr(self) -> str:
        _, dim, hidden_dim = self.w_out.shape
        return (
            f"dim={dim}, hidden_dim={hidden_dim}, num_experts={self.num_experts}, "
            f"top_k={self.top_k}, num_shared_experts={self.num_shared_experts}, "
            f"score={self.score!r}"
        )


def aux_losses(model: nn.Module) -> Tensor:
    """Sum of ``aux_loss`` over the :class:`MoE` modules of a model: a 0-dim tensor, 0 if none.

    >>> layers = nn.Sequential(MoE(8, 16, 4, 2, z_loss_weight=1e-3), MoE(8, 16, 4, 2))
    >>> _ = layers(torch.randn(3, 8))
    >>> bool(aux_losses(layers) > 0)
    True
    """
    losses = [module.aux_loss for module in model.modules() if isinstance(module, MoE)]
    return torch.stack(losses).sum() if losses else torch.zeros(())
