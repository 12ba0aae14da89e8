"""What transformers does for a name with "flash" in it: it loads a package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fulgurite.integrations.transformers.attention import NAMES


def without_ours(loader: Callable[..., Any]) -> Callable[..., Any]:
    """The loader of flash attention packages, which has nothing to load for our names."""
    if hasattr(loader, "before_fulgurite"):
        return loader

    @functools.wraps(loader)
    def lazy_import_flash_attention(implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        return None if implementation in NAMES else loader(implementation, *args, **kwargs)

    lazy_import_flash_attention.before_fulgurite = loader  # type: ignore[attr-defined]
    return lazy_import_flash_attention
