"""A model that exists, led to fulgurite's operators and back."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fulgurite.integrations._applied import Applied
from fulgurite.integrations.transformers import classes, memory
from fulgurite.integrations.transformers.attention import NAMES
from fulgurite.integrations.transformers.names import register
from fulgurite.integrations.transformers.versions import of_transformers

NAME = "fulgurite.integrations.transformers.apply"
# What a config calls the name of a part, and what sets it on a model.
CONFIG_NAMES = {
    "attention": ("_attn_implementation", "set_attn_implementation"),
    "experts": ("_experts_implementation", "set_experts_implementation"),
}

# What leads the models of other libraries.
OTHERS = {
    "timm": "fulgurite.integrations.timm.apply",
    "diffusers": "fulgurite.integrations.diffusers.set_processor",
}


@dataclass
class Found:
    """The modules of a model that were asked for, by what serves them."""

    by_name: dict[str, list[nn.Module]] = field(
        default_factory=lambda: {part: [] for part in CONFIG_NAMES}
    )
    by_class: list[tuple[nn.Module, Any]] = field(default_factory=list)
    not_served: dict[str, set[str]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        modules = dict.fromkeys(module for module, _ in self.by_class)
        for named in self.by_name.values():
            modules |= dict.fromkeys(named)
        return dict(Counter(classes.released(type(module)).__name__ for module in modules))


def apply(
    model: nn.Module,
    *,
    attention: bool = True,
    experts: bool = True,
    routers: bool = False,
    scans: bool = True,
    rotary: bool = False,
    norms: bool = False,
) -> Applied:
    """Lead a model of transformers to fulgurite's operators, in place.

    Names are set where the model asks transformers' tables; modules of classes that ask none get a
    subclass. Parameters, state_dict and ``isinstance`` stay as they are. :func:`register` is
    called first. A second call finds the same; what either returns leads back to what was there
    before the first.

    Args:
        model: a model, or a module that holds some.
        attention: every attention layer.
        experts: every layer of experts.
        routers: those of DeepSeek-V3, Mixtral, Qwen3-MoE and gpt-oss.
        scans: mixers of Mamba, Falcon Mamba and Jamba.
        rotary: the rotary positions of attention layers, of Llama's kind.
        norms: RMS norms of every class that computes what Llama's, Gemma's, gpt-oss's or T5's does.

    Returns:
        what was replaced, and the way back.

    Raises:
        NotImplementedError: nothing that can be replaced, or a part asked for that cannot be. The
            model is as before.
        TypeError: not a module.
        ImportError: no transformers, or a version without one of the tables.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{NAME}: expected a torch.nn.Module, got {type(model).__name__}")
    register()
    wanted = {
        "attention": attention,
        "experts": experts,
        "routers": routers,
        "scans": scans,
        "norms": norms,
    }
    found = find(model, wanted)
    if rotary:
        find_rotary(model, found)
    refuse(model, found)
    before = state_of(model, found)
    try:
        lead(model, found)
    except BaseException:
        for owner, attribute, value in before:
            setattr(owner, attribute, value)
        raise
    changes = memory.remember(model, before)
    forget = functools.partial(memory.forget, model)
    return Applied(found.counts(), [forget, *(change.undo for change in changes)])


def state_of(model: nn.Module, found: Found) -> list[tuple[Any, str, Any]]:
    """Every (owner, attribute, value) that leading the modules found may change."""
    parts = [CONFIG_NAMES[part][0] for part, modules in found.by_name.items() if modules]
    state: list[tuple[Any, str, Any]] = [
        (config, f"{attribute}_internal", getattr(config, attribute))
        for config in configs_of(model)
        for attribute in parts
    ]
    state += [(module, "__class__", type(module)) for module, _ in found.by_class]
    for modules in found.by_name.values():
        state += [(module, "config", module.config) for module in modules]
    return state


def lead(model: nn.Module, found: Found) -> None:
    """Give modules their subclasses and names, but for the name that is the user's choice."""
    for module, cls in found.by_class:
        module.__class__ = cls
    chosen = [c for c in configs_of(model) if c._attn_implementation == NAMES[1]]
    for part, modules in found.by_name.items():
        set_name(model, part, modules)
    for config in chosen:
        config._attn_implementation_internal = NAMES[1]


def find(model: nn.Module, wanted: dict[str, bool]) -> Found:
    """The parts asked for, told by their classes."""
    found = Found()
    served_above: set[nn.Module] = set()
    for module in model.modules():
        cls = classes.released(type(module))
        part = classes.part_of(cls)
        if part is None or not wanted[part]:
            continue
        served = classes.subclass_for(cls)
        if served is not None:
            if hasattr(served, "check"):
                served.check(module)
            found.by_class.append((module, served))
            served_above.update(module.modules())
        elif classes.asks_table(cls):
            found.by_name[part].append(module)
            if part == "experts" and getattr(module, "has_post_expert_norm", False):
                found.not_served.setdefault(part, set()).add(cls.__name__)
        elif part == "norms" and not cls.__name__.endswith("RMSNorm"):
            continue  # a LayerNorm is none unless its formula says so
        elif part == "routers" or module not in served_above:
            found.not_served.setdefault(part, set()).add(cls.__name__)
    return found


def find_rotary(model: nn.Module, found: Found) -> None:
    """Attention layers that turn queries and keys, whoever computes their attention."""
    for module in model.modules():
        cls = classes.released(type(module))
        served = classes.rotary_subclass_for(cls)
        if served is not None:
            found.by_class.append((module, served))
        elif classes.part_of(cls) == "attention" and classes.rotates(cls):
            found.not_served.setdefault("rotary", set()).add(cls.__name__)


def refuse(model: nn.Module, found: Found) -> None:
    """Raise for parts that cannot be served, and for a model without parts."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    others = [f"; {OTHERS[name]} leads models of {name}" for name in OTHERS if name in packages]
    hint = "".join(others)
    for part, names in found.not_served.items():
        raise NotImplementedError(
            f"{NAME}: {part} of {', '.join(sorted(names))} cannot be replaced:"
            f" pass {part}=False to leave them as they are{hint}"
        )
    if not found.counts():
        raise NotImplementedError(
            f"{NAME}: expected a model with parts that can be replaced, got"
            f" {type(model).__name__}{hint}"
        )


def set_name(model: nn.Module, part: str, modules: list[nn.Module]) -> None:
    """Our name in the configs that these modules of a model read."""
    attribute, setter = CONFIG_NAMES[part]
    inside: set[nn.Module] = set()
    for outer in outer_models(model):
        if not set(modules).isdisjoint(outer.modules()):
            getattr(outer, setter)(NAMES[0])
            inside.update(outer.modules())
    for module in modules:
        config: Any = module.config
        if getattr(config, attribute) not in NAMES:
            if module not in inside:  # layers that are not given may read the same config
                module.config = config = copy.copy(config)
            setattr(config, f"{attribute}_internal", NAMES[0])


def outer_models(module: nn.Module) -> Iterator[Any]:
    """The models of transformers in a module that are in no other one."""
    if isinstance(module, of_transformers("modeling_utils", "PreTrainedModel")):
        yield module
    else:
        for child in module.children():
            yield from outer_models(child)


def configs_of(model: nn.Module) -> list[Any]:
    """Every config of the models of transformers in a module, those within others too."""
    found: dict[int, Any] = {}
    left: list[Any] = [
        getattr(module, "config", None)
        for outer in outer_models(model)
        for module in outer.modules()
    ]
    while left:
        config = left.pop()
        if hasattr(config, "sub_configs") and id(config) not in found:
            found[id(config)] = config
            left += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())
