"""An estimate of what a decoder-only transformer keeps for its backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fulgurite.memory.experts import dense_layers, visited_width


@dataclass(frozen=True)
class Transformer:
    """The sizes that activations depend on.

    Attributes:
        layers, hidden, heads, kv_heads, head_dim, vocabulary: of the model.
        intermediate: width of the feed-forward layer; with experts the sum over those that one
            token visits, shared ones included.
        dense_layers, dense_intermediate: how many of the layers have no experts in a model that
            has, and their width.
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
    dense_layers: int = 0
    dense_intermediate: int = 0

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transformer:
        """From a configuration of transformers (the content of a ``config.json``)."""
        config = config.get("text_config", config)
        config = config | (config.get("ffn_config") or {})  # DBRX

        def read(*names: str, default: int | None = None) -> int:
            for name in names:
                value = config.get(name)
                if value is not None:  # a list: of layers or modalities, of which the first counts
                    return int(value[0] if isinstance(value, list) else value)
            if default is None:
                raise ValueError(
                    f"fulgurite.memory: expected {' or '.join(names)} in the configuration"
                )
            return default

        hidden = read("hidden_size", "n_embd", "d_model")
        heads = read("num_attention_heads", "n_head", "num_heads", "n_heads")
        layers = read("num_hidden_layers", "n_layer", "num_layers", "n_layers")
        wide = read(
            "intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", default=4 * hidden
        )
        return cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=read("num_key_value_heads", default=heads),
            head_dim=read("head_dim", default=hidden // heads),
            intermediate=visited_width(config, read, wide),
            vocabulary=read("vocab_size"),
            gated="gelu"
            not in str(config.get("hidden_act", config.get("activation_function", ""))),
            dense_layers=dense_layers(config, read, layers),
            dense_intermediate=read("intermediate_size_mlp", default=wide),  # Llama 4's name
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
        around, products = 4 * self.hidden + 2 * q + kv, 4 if self.gated else 2
        with_experts = [around + products * self.intermediate] * (self.layers - self.dense_layers)
        without = [around + products * self.dense_intermediate] * self.dense_layers
        whole = with_experts + without
        kept = self.layers * self.hidden + max(whole, default=0) if checkpointing else sum(whole)
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
