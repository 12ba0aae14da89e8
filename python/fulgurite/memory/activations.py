"""An estimate of what a decoder-only transformer keeps for its backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Transformer:
    """The sizes that activations depend on.

    Attributes:
        layers, hidden, heads, kv_heads, head_dim, vocabulary: of the model.
        intermediate: width of the feed-forward layer; with experts the sum over those that one
            token visits.
        gated: the feed-forward layer multiplies a gate (SwiGLU) by its other half.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    gated: bool = True

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transformer:
        """From a configuration of transformers (the content of a ``config.json``)."""
        config = config.get("text_config", config)

        def read(*names: str, default: int | None = None) -> int:
            for name in names:
                if config.get(name) is not None:
                    return int(config[name])
            if default is None:
                raise ValueError(
                    f"fulgurite.memory: expected {' or '.join(names)} in the configuration"
                )
            return default

        hidden = read("hidden_size", "n_embd", "d_model")
        heads = read("num_attention_heads", "n_head", "num_heads")
        wide = read("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * hidden)
        visited = read("num_experts_per_tok", default=0)
        experts = visited * read("moe_intermediate_size", default=wide)
        return cls(
            layers=read("num_hidden_layers", "n_layer", "num_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=read("num_key_value_heads", default=heads),
            head_dim=read("head_dim", default=hidden // heads),
            intermediate=experts or wide,
            vocabulary=read("vocab_size"),
            gated="gelu"
            not in str(config.get("hidden_act", config.get("activation_function", ""))),
        )

    def activation_bytes(self, tokens: int, *, width: int = 2, checkpointing: bool = False) -> int:
        """Activations of all layers, without attention's own.

        A layer keeps, per token: its input, the normed input, query, key and value, attention's
        result, the residual after it, the normed residual, and of the feed-forward layer every
        intermediate that its backward reads: gate, up, activated gate and product (gated), or the
        layer's first product and its activation.

        Args:
            tokens: batch times length.
            width: bytes of an activation.
            checkpointing: each layer keeps its input alone and computes the rest again, so that the
                whole of one layer is there at a time.
        """
        q, kv = self.heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        feed_forward = (4 if self.gated else 2) * self.intermediate
        layer = 4 * self.hidden + 2 * q + kv + feed_forward
        kept = self.layers * self.hidden + layer if checkpointing else self.layers * layer
        return width * tokens * kept

    def logit_bytes(self, tokens: int) -> int:
        """Logits in float32."""
        return 4 * tokens * self.vocabulary

    def attention_bytes(self, batch: int, length: int) -> int:
        """What ``fulgurite`` attention keeps beside inputs and result: a float32 lse per row."""
        return 4 * batch * self.heads * length * self.layers

    def eager_attention_bytes(self, batch: int, length: int, *, width: int = 2) -> int:
        """What attention written out in matrix products keeps at least: the probabilities."""
        return width * batch * self.heads * length * length * self.layers
