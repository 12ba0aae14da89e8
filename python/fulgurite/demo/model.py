"""The language model of the demo: a byte-level decoder with mixture-of-experts layers.

The skeleton (embedding, norms, residuals, head) is shared by both arms; attention and experts are
built by two functions, fulgurite's here and plain PyTorch's in :mod:`fulgurite.demo.plain`.

Dims: B sequences, N positions, C width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fulgurite.nn import Attention, MoE, rotary_table


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model; the default has 10.8 million parameters, 3.7 million used per byte."""

    vocabulary: int = 256
    sequence: int = 512
    dim: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    window: int = 128  # positions seen on every other layer
    experts: int = 16
    top_k: int = 4
    shared_experts: int = 1
    expert_dim: int = 192
    bias_update_rate: float = 1e-3
    balance_loss_weight: float = 1e-3
    z_loss_weight: float = 1e-4

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def layer_window(self, layer: int) -> int:
        """Positions that the layer sees before its own; -1 on the layers that see all of them."""
        return self.window if layer % 2 == 1 else -1


QUICK = ModelConfig(sequence=256, dim=128, layers=2, window=64, expert_dim=96)

BuildAttention = Callable[[ModelConfig, int], nn.Module]  # (config, window)
BuildMoE = Callable[[ModelConfig], nn.Module]


class MoELayer(Protocol):
    """What training needs of either arm's experts."""

    load: Tensor
    aux_loss: Tensor

    def update_bias(self) -> None: ...


def fulgurite_attention(config: ModelConfig, window: int) -> nn.Module:
    """Grouped-query attention on ``fulgurite::attention`` and ``fulgurite::rope``."""
    return Attention(config.dim, config.heads, config.kv_heads, window=window)


def fulgurite_moe(config: ModelConfig) -> nn.Module:
    """Sigmoid-routed experts on ``fulgurite::moe_route`` and ``fulgurite::moe_experts``."""
    return MoE(
        config.dim,
        config.expert_dim,
        config.experts,
        config.top_k,
        num_shared_experts=config.shared_experts,
        score="sigmoid",
        bias_update_rate=config.bias_update_rate,
        balance_loss_weight=config.balance_loss_weight,
        z_loss_weight=config.z_loss_weight,
    )


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + moe(norm(x))``."""

    def __init__(self, dim: int, attention: nn.Module, moe: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.attention = attention
        self.moe_norm = nn.RMSNorm(dim, eps=1e-6)
        self.moe = moe

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        x = x + self.moe(self.moe_norm(x))
        return x


class LanguageModel(nn.Module):
    """Bytes (B, N) int64 to logits (B, N, V) of the byte that follows each."""

    def __init__(
        self,
        config: ModelConfig,
        attention: BuildAttention = fulgurite_attention,
        moe: BuildMoE = fulgurite_moe,
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, attention(config, config.layer_window(layer)), moe(config))
            for layer in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, config.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        cos, sin = rotary_table(tokens.shape[1], self.head_dim, device=tokens.device)
        x = self.embedding(tokens)  # (B, N, C)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def moe_layers(self) -> list[MoELayer]:
        return [cast(MoELayer, block.moe) for block in self.blocks]


def initialise(model: LanguageModel, seed: int) -> None:
    """Draw every matrix from N(0, 1/fan_in), those that end a residual branch 1/√(2·layers) of it.

    Embeddings have standard deviation 1: the residual stream starts at the scale of its norms. The
    head's is a tenth: the first guess is near uniform, ln 256 = 5.55 nats.
    """
    generator = torch.Generator().manual_seed(seed)
    damping = (2 * len(model.blocks)) ** -0.5
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        std = 1.0 if name == "embedding.weight" else weight.shape[-1] ** -0.5
        if name.endswith(("attention.out.weight", "moe.w_out")):
            std *= damping
        elif name == "head.weight":
            std *= 0.1
        nn.init.normal_(weight, std=std, generator=generator)


@torch.no_grad()
def generate(
    model: LanguageModel, prompt: Tensor, length: int, *, temperature: float, seed: int
) -> Tensor:
    """Continue a prompt (N,) of bytes by ``length`` sampled bytes; returns the new ones only."""
    generator = torch.Generator().manual_seed(seed)
    tokens = prompt.long()
    for _ in range(length):
        logits = model(tokens[None])[0, -1].float() / temperature
        following = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, following])
    return tokens[len(prompt) :]
