"""Which classes of transformers get which subclass, and how the others are told apart.

The subclasses are in files of their own, which import their models: a file is imported when a model
holds one of its classes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from fulgurite.integrations._led import names_in
from fulgurite.integrations.transformers.versions import wrong_version

PACKAGE = "fulgurite.integrations.transformers"
MODELS = "transformers.models"
SWITCH = f"{MODELS}.switch_transformers.modeling_switch_transformers"

SUBCLASSES = {
    "attention": {
        f"{MODELS}.swinv2.modeling_swinv2.Swinv2SelfAttention": "swinv2.Swinv2",
        f"{MODELS}.sam.modeling_sam.SamVisionAttention": "sam.SamVision",
        f"{MODELS}.sam.modeling_sam.SamVisionSdpaAttention": "sam.SamVisionSdpa",
        f"{MODELS}.sam_hq.modeling_sam_hq.SamHQVisionAttention": "sam.SamHQVision",
        f"{MODELS}.sam_hq.modeling_sam_hq.SamHQVisionSdpaAttention": "sam.SamHQVisionSdpa",
    },
    "experts": {
        f"{SWITCH}.SwitchTransformersSparseMLP": "switch.SwitchSparseMLP",
    },
    "scans": {
        f"{MODELS}.mamba.modeling_mamba.MambaMixer": "mamba.Mamba",
        f"{MODELS}.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer": "mamba.FalconMamba",
        f"{MODELS}.jamba.modeling_jamba.JambaMambaMixer": "mamba.Jamba",
    },
    "routers": {
        f"{MODELS}.deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter": "routers.DeepseekV3",
        f"{MODELS}.gpt_oss.modeling_gpt_oss.GptOssTopKRouter": "routers.GptOss",
        f"{MODELS}.mixtral.modeling_mixtral.MixtralTopKRouter": "routers.Mixtral",
        f"{MODELS}.qwen3_moe.modeling_qwen3_moe.Qwen3MoeTopKRouter": "routers.Qwen3Moe",
    },
}
PLACES = {name: place for places in SUBCLASSES.values() for name, place in places.items()}
PARTS = {name: part for part, places in SUBCLASSES.items() for name in places}
# Without a subclass yet.
PARTS[f"{MODELS}.mamba2.modeling_mamba2.Mamba2Mixer"] = "scans"
# Those whose positions are turned in halves, with angles that both halves share: a subclass beside
# the name that leads their attention.
ROTARY = {
    f"{MODELS}.{file}.modeling_{file}.{name}Attention": f"rotary.{name}"
    for file, name in {
        "chameleon": "Chameleon",
        "gemma": "Gemma",
        "gemma2": "Gemma2",
        "gemma3": "Gemma3",
        "gpt_oss": "GptOss",
        "granite": "Granite",
        "granitemoe": "GraniteMoe",
        "llama": "Llama",
        "ministral": "Ministral",
        "mistral": "Mistral",
        "mixtral": "Mixtral",
        "olmoe": "Olmoe",
        "phi": "Phi",
        "qwen2": "Qwen2",
        "qwen2_moe": "Qwen2Moe",
        "qwen3": "Qwen3",
        "qwen3_moe": "Qwen3Moe",
        "smollm3": "SmolLM3",
        "starcoder2": "Starcoder2",
    }.items()
}


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def released(cls: type) -> type:
    """The class of transformers that one of ours is put in place of; others are their own."""
    if not cls.__module__.startswith(f"{PACKAGE}."):
        return cls
    return next(base for base in cls.__mro__ if base.__module__.startswith("transformers."))


def subclass_for(cls: type) -> Any:
    """The subclass in this package that serves a class, or None."""
    if part_of(cls) == "norms":
        return own_file("norms").subclass_of(cls)
    return at(PLACES.get(full_name(cls)))


def rotary_subclass_for(cls: type) -> Any:
    """The subclass that rotates the queries and keys of a class, or None."""
    return at(ROTARY.get(full_name(cls)))


def at(place: str | None) -> Any:
    """The class of this package at FILE.NAME."""
    if place is None:
        return None
    file, name = place.split(".")
    return getattr(own_file(file), name)


def own_file(file: str) -> Any:
    """A file of subclasses; ImportError where transformers has other classes than those tested."""
    try:
        return importlib.import_module(f"{PACKAGE}.{file}")
    except ImportError as error:
        raise wrong_version(f"whose classes are others: {error}") from error


@functools.cache
def names_of(cls: type) -> set[str]:
    """Names that a layer's methods refer to, but for those of torch's and transformers' bases."""
    layers = [
        base
        for base in cls.__mro__
        if base.__module__.startswith(MODELS)
        or base.__module__.partition(".")[0] not in ("torch", "transformers")
    ]
    methods = [f for base in layers for f in vars(base).values() if inspect.isfunction(f)]
    return set().union(
        *(names_in(f.__code__) | names_in(inspect.unwrap(f).__code__) for f in methods)
    )


def rotates(cls: type) -> bool:
    """Whether an attention layer turns queries and keys by their positions, as released."""
    return any("apply_rotary_pos_emb" in name for name in names_of(cls))


def asks_table(cls: type) -> bool:
    """Whether a layer looks up its function by the name in its config."""
    return not names_of(cls).isdisjoint(("ALL_ATTENTION_FUNCTIONS", "_experts_implementation"))


@functools.cache
def part_of(cls: type) -> str | None:
    """The part of a model that a class is, as far as its name and its methods say."""
    name, refers = cls.__name__, names_of(cls)
    if full_name(cls) in PARTS:
        return PARTS[full_name(cls)]
    if "ALL_ATTENTION_FUNCTIONS" in refers:
        return "attention"
    own_scores = refers & {"softmax", "Softmax", "scaled_dot_product_attention"}
    if own_scores and "attention" in name.lower() and not name.endswith("Map"):
        return "attention"
    if "_experts_implementation" in refers or name.endswith("Experts"):
        return "experts"
    if cls.__module__.startswith(f"{MODELS}.") and name.endswith(("RMSNorm", "LayerNorm")):
        return "norms"
    return "routers" if name.endswith("Router") else None


def no_weights(module: Any, output_attentions: bool | None) -> None:
    """Raise where attention's weights are asked for."""
    if output_attentions:
        raise NotImplementedError(
            f"fulgurite: {type(module).__name__}: output_attentions=True needs weights, which"
            " Applied.restore() brings back"
        )
