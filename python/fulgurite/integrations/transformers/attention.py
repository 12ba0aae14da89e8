"""The attention function of transformers' interface, by ``attention`` and ``attention_varlen``.

Legend: B batch, Hq query heads, Hkv key/value heads, N queries, M keys, D query/key width, Dv value
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fulgurite.nn import functional as F

NAME = "fulgurite: attention of transformers"
NAMES = ("fulgurite", "fulgurite_flash")

# What models pass along to every function and what changes no result.
NOISE = frozenset(
    [
        "cache_position",
        "cache_params",
        "deterministic",
        "encoder_attention_mask",
        "encoder_hidden_states",
        "image_grid_thw",
        "image_sizes",
        "inputs_embeds",
        "labels",
        "layer_idx",
        "logits_to_keep",
        "mm_token_type_ids",
        "num_items_in_batch",
        "past_key_values",
        "pixel_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "seq_idx",
        "token_type_ids",
        "use_cache",
        "video_grid_thw",
    ]
)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: Any = None,
    max_length_k: Any = None,
    cache: Any = None,
    output_attentions: bool | None = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """What ``attn_implementation="fulgurite"`` and ``"fulgurite_flash"`` call.

    Args:
        module: the layer; ``is_causal`` counts where the argument is None, True where both are
            missing.
        query: (B,Hq,N,D).
        key, value: (B,Hkv,M,D) and (B,Hkv,M,Dv), heads not expanded.
        attention_mask: bool of 4 dims, the pairs that are kept, causality and window included;
            numbers of 4 dims, added to the scores, with a gradient; (B,M) of the flash name, the
            keys that are kept; or None.
        dropout: probability of dropping a pair's weight.
        scaling: factor of the products; None is 1/√D.
        position_bias: added to the scores, with a gradient.
        s_aux: (Hq), a learned extra logit, with a gradient.
        softcap: scores become softcap·tanh(scores/softcap).
        sliding_window: keys that a query reaches, its own included, where no mask of 4 dims says.
        cu_seq_lens_q, cu_seq_lens_k: offsets of packed sequences; B is 1.

    Returns:
        (B,N,Hq,Dv), contiguous, and None for the weights.

    Raises:
        NotImplementedError: an argument that changes the result and has no counterpart here.
    """
    refuse(attention_mask, cache, output_attentions, others)
    flash = name_of(module) == NAMES[1]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scores: dict[str, Any] = {
        "scale": scaling,
        "softcap": 0.0 if softcap is None else softcap,
        "sink": None if s_aux is None else as_scores(s_aux, query),
        "dropout_p": dropout,
    }
    if flash:
        refuse_half_window(module, causal, sliding_window)
        refuse_half_mask(causal, query, attention_mask)
    starts = cu_seq_lens_q
    if flash and starts is None and attention_mask is None and position_bias is None:
        starts = starts_of(others.get("position_ids"), query, key)
    if starts is not None:
        refuse_packed(module, attention_mask, position_bias, key)
        pairs = causal_and_window(causal, sliding_window)
        ends = starts if cu_seq_lens_k is None else cu_seq_lens_k
        return packed(query, key, value, starts, ends, **scores, **pairs), None

    bias, keep, pairs = position_bias, None, {}
    if attention_mask is not None and attention_mask.dim() == 4:
        if attention_mask.dtype == torch.bool:
            keep = attention_mask
        else:
            bias = attention_mask if bias is None else bias + attention_mask
    else:
        if attention_mask is not None:
            key, value, keep = kept_keys(key, value, attention_mask)
        # One query stands behind all keys; more of them, without a mask, before an empty cache.
        causal = causal if query.shape[2] > 1 else False
        top_left = causal and attention_mask is None and not flash
        pairs = causal_and_window(causal, sliding_window)
        pairs["align"] = "top_left" if top_left else "bottom_right"
    if query.shape[0] == 1 and key.shape[0] != 1:  # learned queries
        query = query.expand(key.shape[0], -1, -1, -1)
    bias = None if bias is None else as_scores(bias, query)
    out: Tensor = F.attention(query, key, value, bias=bias, mask=keep, **scores, **pairs)
    return out.transpose(1, 2).contiguous(), None


def causal_and_window(causal: bool, sliding_window: int | None) -> dict[str, Any]:
    """``sliding_window`` keys up to the query's own; as many after it where nothing is causal."""
    if sliding_window is None:
        return {"causal": causal}
    if not isinstance(sliding_window, int) or sliding_window < 1:
        raise NotImplementedError(
            f"{NAME}: expected sliding_window of at least 1, got {sliding_window}"
        )
    reach = sliding_window - 1
    return {"causal": causal, "window_left": reach, "window_right": -1 if causal else reach}


def refuse_half_window(module: nn.Module, causal: bool, sliding_window: int | None) -> None:
    """Raise for a layer that hands over its config's window, of which its mask reaches one more.

    transformers' mask without causality keeps |i − j| ≤ window; layers made for flash attention
    say one more than the config does (ModernBERT), others (T5Gemma's encoder) forget it.
    """
    of_config = getattr(getattr(module, "config", None), "sliding_window", None)
    if not causal and sliding_window is not None and sliding_window == of_config:
        raise NotImplementedError(
            f"{NAME}: {type(module).__name__} says another window under {NAMES[1]!r} than its"
            f' mask: use attn_implementation="{NAMES[0]}"'
        )


def refuse_half_mask(causal: bool, query: Tensor, mask: Tensor | None) -> None:
    """Raise for a causal layer with a mask of pairs under the flash name.

    transformers leaves causality out of what it makes for flash attention, so a layer that adds a
    mask of its own (Doge) adds it to half of one.
    """
    if causal and query.shape[2] > 1 and mask is not None and mask.dim() == 4:
        raise NotImplementedError(
            f"{NAME}: expected no mask of pairs for a causal layer under {NAMES[1]!r}, got one of"
            f' shape {list(mask.shape)}: use attn_implementation="{NAMES[0]}"'
        )


def kept_keys(key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The keys that a mask of two dimensions speaks of, and the mask for all their queries."""
    if mask.shape[1] < key.shape[2]:  # a static cache is longer than what has been written
        key, value = key[:, :, : mask.shape[1]], value[:, :, : mask.shape[1]]
    elif mask.shape[1] > key.shape[2]:  # a window's cache has the last ones only
        mask = mask[:, mask.shape[1] - key.shape[2] :]
    return key, value, mask.to(torch.bool)[:, None, None, :]


def packed(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor, **options: Any
) -> Tensor:
    """Attention inside each of the sequences that lie one behind the other: (B,N,Hq,Dv)."""
    batch, _, rows, _ = query.shape
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out: Tensor = F.attention_varlen(query, key, value, starts, ends, **options)
    return out.view(batch, rows, *out.shape[1:])


def starts_of(positions: Any, query: Tensor, key: Tensor) -> Tensor | None:
    """Offsets of the sequences that positions count: where one does not follow the one before.

    There are N + 1 offsets whatever the positions are; sequences behind the last are empty.
    """
    N = query.shape[2]
    if not isinstance(positions, Tensor) or positions.dim() != 2 or positions.shape[1] != N:
        return None
    if key.shape[2] != N or N < 2:
        return None
    if query.shape[0] != 1 or positions.shape[0] != 1:
        refuse_rows(positions)
        return None
    row = torch.arange(N + 1, device=positions.device)
    follows = torch.nn.functional.pad(positions[0].diff() == 1, (1, 1))
    return torch.where(follows, N, row).sort().values


def refuse_rows(positions: Tensor) -> None:
    """Raise for several rows of documents, but in a graph, which cannot look at the positions."""
    if not torch.compiler.is_compiling() and bool((positions.diff() != 1).any()):
        raise NotImplementedError(
            f"{NAME}: expected position_ids that start again in a batch of 1 under"
            f" {NAMES[1]!r}, got {len(positions)} rows: put all documents into one, or use"
            f' attn_implementation="{NAMES[0]}"'
        )


def as_scores(x: Tensor, query: Tensor) -> Tensor:
    """A bias or sink in a dtype that the operator takes beside this query."""
    if x.dtype in (query.dtype, torch.float32):
        return x
    return x.to(torch.float64 if query.dtype == torch.float64 else torch.float32)


def name_of(module: nn.Module) -> str | None:
    config = getattr(module, "config", None)
    return getattr(config, "_attn_implementation", None)


def refuse(mask: Any, cache: Any, output_attentions: bool | None, others: dict[str, Any]) -> None:
    """Raise for what changes the result and has no counterpart here."""
    if output_attentions:
        raise NotImplementedError(
            f'{NAME}: output_attentions=True needs weights, use attn_implementation="eager"'
        )
    if cache is not None:
        raise NotImplementedError(
            f"{NAME}: continuous batching is not supported, use generate with a DynamicCache"
            ' or attn_implementation="sdpa"'
        )
    if mask is not None and not isinstance(mask, Tensor):
        raise NotImplementedError(
            f"{NAME}: expected attention_mask to be a tensor, got {type(mask).__name__}:"
            ' use attn_implementation="flex_attention"'
        )
    if mask is not None:
        refuse_mask(mask)
    for name, given in others.items():
        harmless = name in NOISE or (name.startswith("output_") and "attentions" not in name)
        if not harmless and given is not None and given is not False:
            raise NotImplementedError(
                f'{NAME}: {name} is not supported, use attn_implementation="eager"'
            )


def refuse_mask(mask: Tensor) -> None:
    numbers = mask.dtype.is_floating_point
    if not (
        (mask.dim() == 4 and (numbers or mask.dtype == torch.bool))
        or (mask.dim() == 2 and not numbers)
    ):
        raise NotImplementedError(
            f"{NAME}: expected attention_mask of 4 dimensions, bool or numbers, or bool of 2,"
            f" got {mask.dtype} of shape {list(mask.shape)}"
        )


def refuse_packed(
    module: nn.Module, mask: Tensor | None, position_bias: Tensor | None, key: Tensor
) -> None:
    """Raise for what packed sequences cannot have."""
    if position_bias is not None:
        raise NotImplementedError(
            f"{NAME}: position_bias with cu_seq_lens_q is not supported, use a batch with padding"
        )
    if mask is not None and not (mask.dim() == 4 and mask.dtype == torch.bool):
        raise NotImplementedError(
            f"{NAME}: expected no attention_mask with cu_seq_lens_q, got one: leave it out"
        )
    chunk = getattr(getattr(module, "config", None), "attention_chunk_size", None)
    if chunk is not None and key.shape[2] > chunk:  # Llama 4; the mask alone says so
        raise NotImplementedError(
            f"{NAME}: attention in chunks of {chunk} with cu_seq_lens_q is not supported,"
            " use position_ids alone"
        )
