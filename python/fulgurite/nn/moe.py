"""Mixture-of-experts feed-forward: a router, routed and shared experts."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fulgurite._numbers import integer, number
from fulgurite.nn import functional as F
from fulgurite.nn.counted import COUNTS, keep_aux_loss, state_without_graph
from fulgurite.nn.load import LoadStatistics
from fulgurite.nn.router import Router, check_tokens, jittered


def share_router_tensors(module: nn.Module, _: Any = None) -> None:
    """The router's tensors under their own names in the layer too, in TorchScript as well."""
    for name in ("aux_loss", "selection_bias", *COUNTS):
        setattr(module, name, getattr(module.router, name))


class MoE(nn.Module):
    """Top-k mixture of experts: a :class:`Router`, and the experts as one fused operator.

    ::

        weights, ids = router(x)
        y            = Σ_{e in ids} w_e · out_e(act(gate_e x) · up_e x)  +  Σ_{shared s} ffn_s(x)

    No token is dropped unless the router has a capacity. Shared experts are experts that every
    token is sent to with weight 1. They lie behind the routed ones in the stacked weights, so one
    fused call computes both.

    Args:
        dim: width H of the input and of the output.
        hidden_dim: hidden width I of one expert.
        num_experts: routed experts E.
        top_k: routed experts per token K, 1 ≤ K ≤ E.
        num_shared_experts: experts S that every token uses.
        activation, gated, interleaved, transposed, alpha, limit, save_hidden: see
            :func:`fulgurite.nn.functional.moe_experts`, which also says what does not fit together.
        expert_bias: biases in both layers of every expert.
        input_jitter: in training, multiply x by uniform noise in [1 − j, 1 + j] before router and
            experts read it (Mixtral); the router's own ``jitter`` leaves the experts' x alone.
        device, dtype: of the parameters.
        **routing: everything else that :class:`Router` takes, :func:`routing`'s included.

    Parameters: those of ``router``; ``w_in`` (E + S, 2·I, H) holding gate then up rows, ``w_out``
    (E + S, H, I), each with its last two dims swapped if transposed; with ``expert_bias`` also
    ``b_in`` (E + S, 2·I) and ``b_out`` (E + S, H). Not gated, 2·I is I. The router's ``load``,
    ``dropped``, ``selection_bias`` and ``aux_loss`` are attributes of the layer too.

    Raises:
        ValueError, TypeError: arguments that do not fit together.

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
        "num_experts",
        "num_shared_experts",
        "activation",
        "gated",
        "interleaved",
        "transposed",
        "alpha",
        "limit",
        "save_hidden",
        "input_jitter",
    ]

    b_in: Tensor | None
    b_out: Tensor | None
    aux_loss: Tensor
    load: Tensor
    dropped: Tensor
    selection_bias: Tensor | None

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        top_k: int,
        *,
        num_shared_experts: int = 0,
        activation: str = "silu",
        gated: bool = True,
        interleaved: bool = False,
        transposed: bool = False,
        alpha: float = 1.0,
        limit: float = 0.0,
        save_hidden: bool = True,
        expert_bias: bool = False,
        input_jitter: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **routing: Any,
    ) -> None:
        super().__init__()
        dim, hidden_dim = integer("MoE", "dim", dim, 1), integer("MoE", "hidden_dim", hidden_dim, 1)
        num_experts = integer("MoE", "num_experts", num_experts, 1)
        num_shared_experts = integer("MoE", "num_shared_experts", num_shared_experts, 0)
        self.num_experts, self.num_shared_experts = num_experts, num_shared_experts
        self.activation, self.gated, self.interleaved = activation, gated, interleaved
        self.transposed, self.save_hidden = transposed, save_hidden
        self.alpha = number("MoE", "alpha", alpha)
        self.limit = number("MoE", "limit", limit, at_least=0)
        self.input_jitter = number("MoE", "input_jitter", input_jitter, at_least=0, below=1)
        self.register_buffer("selection_bias", None, persistent=False)
        self.router = Router(dim, num_experts, top_k, device=device, dtype=dtype, **routing)

        def stacked(*shape: int) -> nn.Parameter:
            experts = num_experts + num_shared_experts
            return nn.Parameter(torch.empty(experts, *shape, device=device, dtype=dtype))

        rows = 2 * hidden_dim if gated else hidden_dim
        self.w_in = stacked(dim, rows) if transposed else stacked(rows, dim)
        self.w_out = stacked(hidden_dim, dim) if transposed else stacked(dim, hidden_dim)
        self.b_in = stacked(rows) if expert_bias else None
        self.b_out = stacked(dim) if expert_bias else None
        self.check_options(dim)
        self.register_load_state_dict_post_hook(share_router_tensors)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    @torch.jit.unused
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "router":
            share_router_tensors(self)

    def reset_parameters(self) -> None:
        """Draw every weight from N(0, 1/fan_in); biases, counts and losses are 0."""
        self.router.reset_parameters()
        share_router_tensors(self)
        for weight in (self.w_in, self.w_out):
            nn.init.normal_(weight, std=weight.shape[1 if self.transposed else 2] ** -0.5)
        for bias in (self.b_in, self.b_out):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Route every token of x (..., N, H) and add up its experts.

        Args:
            x: the tokens.
            token_mask: (..., N) bool; False: no expert, shared ones included, and a result of 0.

        Returns:
            (..., N, H), in x's dtype (autocast's, inside autocast).

        Raises:
            TypeError, RuntimeError (shapes): an x of another width, a mask that is not x's.
        """
        check_tokens("MoE", x, self.router.weight.shape[1], token_mask)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self.check_dtype(x)
        if self.training and self.input_jitter > 0.0:
            x = jittered(x, self.input_jitter)
        weights, ids = self.router(x, token_mask)  # (T, K)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            keep_aux_loss(self, self.router.aux_loss)
        elif self.training or self.router.has_loss():
            self.aux_loss = self.router.aux_loss
        if self.num_shared_experts > 0:
            weights, ids = self.with_shared_experts(weights, ids, token_mask)
        tokens = x.reshape(-1, x.shape[-1])
        y = self.experts(tokens, ids, weights, self.w_in, self.w_out, self.b_in, self.b_out)
        # Not y.view: in-place operations on views bypass the hooks of FSDP2. y itself is not used.
        whole: Tensor = torch.ops.aten._unsafe_view(y, x.shape)
        return whole

    def experts(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        b_in: Tensor | None,
        b_out: Tensor | None,
    ) -> Tensor:
        """:func:`fulgurite.nn.functional.moe_experts` with the options of this layer."""
        return F.moe_experts(
            x,
            ids,
            weights,
            w_in,
            w_out,
            b_in=b_in,
            b_out=b_out,
            activation=self.activation,
            gated=self.gated,
            interleaved=self.interleaved,
            transposed=self.transposed,
            alpha=self.alpha,
            limit=self.limit,
            save_hidden=self.save_hidden,
        )

    @torch.jit.unused
    def check_dtype(self, x: Tensor) -> None:
        """Raise before the router counts, where the experts would after it."""
        if x.dtype == self.w_in.dtype:
            return
        cast = torch.is_autocast_enabled(x.device.type)
        if not cast or torch.float64 in (x.dtype, self.w_in.dtype):
            raise TypeError(f"MoE: expected x of {self.w_in.dtype}, got {x.dtype}")

    def check_options(self, dim: int) -> None:
        """Ask the operator, without memory, whether it knows these options together."""
        chosen = self.router.top_k + self.num_shared_experts
        x, weights = (
            torch.empty(0, width, dtype=self.w_in.dtype, device="meta") for width in (dim, chosen)
        )
        w_in, w_out = self.w_in.detach().to("meta"), self.w_out.detach().to("meta")
        biases = (self.b_in, self.b_out)
        b_in, b_out = (None if bias is None else bias.detach().to("meta") for bias in biases)
        self.experts(x, weights.to(torch.int32), weights, w_in, w_out, b_in, b_out)

    def with_shared_experts(
        self, weights: Tensor, ids: Tensor, token_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Send every token to the shared experts too: (T, K) becomes (T, K + S)."""
        first, shared = self.num_experts, self.num_shared_experts
        shared_ids = torch.arange(first, first + shared, dtype=ids.dtype, device=ids.device)
        shared_ids = shared_ids.expand(ids.shape[0], shared)
        if token_mask is not None:
            shared_ids = shared_ids.masked_fill(~token_mask.reshape(-1, 1), -1)
        ids = torch.cat([ids, shared_ids], dim=1)
        weights = torch.cat([weights, weights.new_ones(weights.shape[0], shared)], dim=1)
        return weights, ids

    @torch.jit.export
    def update_bias(self) -> None:
        """:meth:`Router.update_bias`: call it once after each optimizer step."""
        self.router.update_bias()

    @torch.jit.unused
    def load_statistics(self) -> LoadStatistics:
        """:meth:`Router.load_statistics`."""
        return self.router.load_statistics()

    @classmethod
    def from_transformers(cls, block: nn.Module) -> "MoE":
        """A copy of a mixture-of-experts block of transformers 5, with its weights.

        Serves the blocks of Mixtral, Qwen3-MoE, OLMoE, DeepSeek-V2 and -V3 (so Moonlight and
        Kimi-K2), gpt-oss and Switch. Losses are off, as they are outside of such a block; dropout
        inside of Switch's experts is left out.

        Raises:
            TypeError: a block of another model.
            NotImplementedError: an option of the block that has no counterpart here.
        """
        from fulgurite.integrations.transformers.blocks import block_parts

        options, state = block_parts(block)
        weight = state["router.weight"]
        module = cls(**options, device=weight.device, dtype=weight.dtype)
        module.load_state_dict({**module.state_dict(), **state})
        return module.train(block.training)

    @torch.jit.unused
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moved or cast one by one, tensors of two names become two.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        share_router_tensors(self)
        return self

    @torch.jit.unused
    def __getstate__(self) -> dict[str, Any]:
        return state_without_graph(self)

    def extra_repr(self) -> str:
        return (
            f"num_shared_experts={self.num_shared_experts}, activation={self.activation!r}, "
            f"w_in={tuple(self.w_in.shape)}, w_out={tuple(self.w_out.shape)}"
        )
