"""fulgurite's names in the tables of transformers."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from fulgurite.integrations.transformers import classes
from fulgurite.integrations.transformers.attention import NAMES, attention
from fulgurite.integrations.transformers.experts import OPTIONS, experts
from fulgurite.integrations.transformers.versions import of_transformers, wrong_version

PLAIN, FLASH = NAMES
LOADER = "lazy_import_flash_attention"
SAM_TABLES = {
    "models.sam.modeling_sam": "SAM_VISION_ATTENTION_CLASSES",
    "models.sam_hq.modeling_sam_hq": "SAM_HQ_VISION_ATTENTION_CLASSES",
}


def register() -> None:
    """Put fulgurite's names into the tables of transformers; no model changes.

    A second call changes nothing. Afterwards ``attn_implementation`` takes ``"fulgurite"``, and
    ``"fulgurite_flash"``, under which transformers passes masks of two dimensions and vision towers
    make one packed call; ``experts_implementation`` takes ``"fulgurite"``.

    Raises:
        ImportError: no transformers, or a version without one of the tables, or with layers of
            experts that say less than those of the version that was tested.
    """
    masks = of_transformers("masking_utils", "AttentionMaskInterface")
    functions = of_transformers("modeling_utils", "AttentionInterface")
    experts_functions = of_transformers("integrations.moe", "ALL_EXPERTS_FUNCTIONS")
    check_experts()
    mask_functions = {
        PLAIN: of_transformers("masking_utils", "sdpa_mask"),
        FLASH: of_transformers("masking_utils", "flash_attention_mask"),
    }
    loaders = [
        (importlib.import_module(f"transformers.{file}"), of_transformers(file, LOADER))
        for file in ("modeling_flash_attention_utils", "modeling_utils")
    ]
    sam_tables = [of_transformers(file, name) for file, name in SAM_TABLES.items()]
    sam = classes.own_file("sam")

    for name in NAMES:
        functions.register(name, attention)
        masks.register(name, mask_functions[name])
    experts_functions.register(PLAIN, experts)
    for table, served in zip(sam_tables, (sam.SamVision, sam.SamHQVision), strict=True):
        table[PLAIN] = served
    for module, loader in loaders:
        setattr(module, LOADER, without_ours(loader))


def without_ours(loader: Callable[..., Any]) -> Callable[..., Any]:
    """The loader of flash attention packages, which has nothing to load for our names."""
    if hasattr(loader, "before_fulgurite"):
        return loader

    @functools.wraps(loader)
    def lazy_import_flash_attention(implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        return None if implementation in NAMES else loader(implementation, *args, **kwargs)

    lazy_import_flash_attention.before_fulgurite = loader  # type: ignore[attr-defined]
    return lazy_import_flash_attention


def check_experts() -> None:
    """Raise for a release whose layers of experts do not say all that is asked of them."""
    decorator = of_transformers("integrations.moe", "use_experts_implementation")
    missing = OPTIONS - set(inspect.signature(decorator).parameters)
    if missing:
        names = ", ".join(sorted(missing))
        raise wrong_version(f"without {names} of integrations.moe.use_experts_implementation")
