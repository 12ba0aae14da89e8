"""The plain arm: the same model as a PyTorch user would write it, and its optimizer step.

scaled_dot_product_attention with grouped queries, transformers-style experts on
``torch.nn.functional.grouped_mm`` (sort the assignments by expert, multiply, sort back), fused
AdamW, GradScaler and clip_grad_norm_.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulgurite.demo.model import LanguageModel, ModelConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the halves layout: x (B, H, N, D), cos and sin (N, D/2)."""
    cos, sin = torch.cat([cos, cos], -1).to(x.dtype), torch.cat([sin, sin], -1).to(x.dtype)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class PlainAttention(nn.Module):
    """Grouped-query attention on scaled_dot_product_attention."""

    mask: Tensor | None

    def __init__(self, config: ModelConfig, window: int) -> None:
        super().__init__()
        self.heads = [config.heads, config.kv_heads, config.kv_heads]
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.dim, sum(self.heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        mask = None
        if window >= 0:
            square = torch.ones(config.sequence, config.sequence, dtype=torch.bool)
            mask = square.tril().triu(-window)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        query, key, value = qkv.split(self.heads, dim=1)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mask = None if self.mask is None else self.mask[:length, :length]
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class PlainMoE(nn.Module):
    """Sigmoid-routed experts with a selection bias, and shared experts as one dense layer."""

    selection_bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, hidden, experts = config.dim, config.expert_dim, config.experts
        shared = config.shared_experts * hidden
        self.config = config
        self.router = nn.Parameter(torch.empty(experts, dim))
        self.w_in = nn.Parameter(torch.empty(experts, 2 * hidden, dim))
        self.w_out = nn.Parameter(torch.empty(experts, dim, hidden))
        self.shared_in = nn.Linear(dim, 2 * shared, bias=False)
        self.shared_out = nn.Linear(shared, dim, bias=False)
        self.register_buffer("selection_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64))
        self.aux_loss = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # (T, C)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.router)  # (T, E)
        scores = logits.sigmoid()
        ids = (scores + self.selection_bias).topk(self.config.top_k, dim=-1).indices  # (T, K)
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if self.training:
            counts = ids.flatten().bincount(minlength=self.config.experts)
            self.load += counts
            self.aux_loss = self.losses(logits, scores, counts)
        gate, up = self.shared_in(tokens).chunk(2, -1)
        y: Tensor = self.routed(tokens, ids, weights) + self.shared_out(F.silu(gate) * up)
        return y.view(x.shape)

    def routed(self, tokens: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        # grouped_mm is not on autocast's lists: cast as a layer on those lists would be.
        device = tokens.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else tokens.dtype
        experts_of, order = ids.flatten().sort(stable=True)  # (T·K)
        back = order.argsort()
        ends = experts_of.bincount(minlength=self.config.experts).cumsum(0, dtype=torch.int32)
        # Repeated, then permuted, not tokens[order // K]: the gradient of that gather adds rows in
        # an order that changes from run to run.
        repeated = tokens.to(dtype).repeat_interleave(self.config.top_k, dim=0)
        x = repeated[order]  # (T·K, C)
        hidden = F.grouped_mm(x, self.w_in.to(dtype).transpose(1, 2), offs=ends)
        gate, up = hidden.chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, self.w_out.to(dtype).transpose(1, 2), offs=ends)
        y = (y * weights.flatten()[order, None])[back]
        return y.view(ids.shape[0], ids.shape[1], -1).sum(1).to(dtype)

    def losses(self, logits: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
        share = counts / counts.sum()
        mean = (scores / (scores.sum(-1, keepdim=True) + 1e-20)).mean(0)
        balance = self.config.experts * (share * mean).sum()
        z_loss = logits.logsumexp(-1).square().mean()
        return self.config.balance_loss_weight * balance + self.config.z_loss_weight * z_loss

    @torch.no_grad()
    def update_bias(self) -> None:
        load = self.load.double()
        self.selection_bias += self.config.bias_update_rate * (load.mean() - load).sign()
        self.load.zero_()


def build_plain(config: ModelConfig) -> LanguageModel:
    """The plain model, uninitialised."""
    return LanguageModel(config, PlainAttention, PlainMoE)


def plain_state(state: dict[str, Tensor], experts: int) -> dict[str, Tensor]:
    """A fulgurite model's state under the plain model's names.

    fulgurite stacks the shared experts behind the routed ones; here they are one dense layer:
    all gate rows, then all up rows. Its router is a module, here it is part of the layer.
    """
    plain = {}
    for name, tensor in state.items():
        if name.endswith("moe.router.dropped"):
            continue
        name = name.replace("router.weight", "router").replace("moe.router.", "moe.")
        if name.endswith("moe.w_in"):
            gate, up = tensor[experts:].chunk(2, dim=1)  # (S, I, C) each
            shared = torch.cat([gate.flatten(0, 1), up.flatten(0, 1)])
            plain[name.replace("w_in", "shared_in.weight")] = shared
            tensor = tensor[:experts]
        elif name.endswith("moe.w_out"):
            shared = tensor[experts:].transpose(0, 1).flatten(1)  # (C, S·I)
            plain[name.replace("w_out", "shared_out.weight")] = shared
            tensor = tensor[:experts]
        plain[name] = tensor
    return plain
