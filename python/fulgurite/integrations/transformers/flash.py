"""What transformers does for the name with "flash" in it: its loader, its check, its masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fulgurite.integrations.transformers.attention import NAMES
from fulgurite.integrations.transformers.versions import of_transformers

FLASH = NAMES[1]
INSTEAD = 'use attn_implementation="fulgurite"'
# Functions of masking_utils whose pairs no mask of keys, no causality and no window can say.
PAIRS = frozenset(["or_mask", "chunked_overlay", "blockwise_overlay"])


def without_ours(loader: Callable[..., Any]) -> Callable[..., Any]:
    """The loader of flash attention packages, which has nothing to load for our names."""
    if hasattr(loader, "before_fulgurite"):
        return loader

    @functools.wraps(loader)
    def lazy_import_flash_attention(implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        return None if implementation in NAMES else loader(implementation, *args, **kwargs)

    lazy_import_flash_attention.before_fulgurite = loader  # type: ignore[attr-defined]
    return lazy_import_flash_attention


def refusing(check: Callable[..., str]) -> Callable[..., str]:
    """A model's check of a name, which refuses ours where it refuses flash attention's."""
    if hasattr(check, "before_fulgurite"):
        return check

    @functools.wraps(check)
    def get_correct_attn_implementation(
        self: Any, requested_attention: str | None, *args: Any, **kwargs: Any
    ) -> str:
        if requested_attention == FLASH and not self._supports_flash_attn:
            raise NotImplementedError(
                f"fulgurite: {type(self).__name__} does not support flash attention, so not"
                f' "{FLASH}": {INSTEAD}'
            )
        return check(self, requested_attention, *args, **kwargs)

    get_correct_attn_implementation.before_fulgurite = check  # type: ignore[attr-defined]
    return get_correct_attn_implementation


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **others: Any,
) -> Tensor | None:
    """transformers' mask of flash attention: the keys that are kept, or None for all of them.

    Raises:
        NotImplementedError: pairs that such a mask cannot say.
    """
    compiling = torch.compiler.is_compiling()
    names = {mask_function.__name__} if compiling else set(names_in(mask_function))
    if use_vmap or not names.isdisjoint(PAIRS):
        raise NotImplementedError(
            f'fulgurite: "{FLASH}" cannot hold this model\'s mask of pairs (a prefix, images that'
            f" see all of themselves, chunks, or a function of its own): {INSTEAD}"
        )
    # Compiled, transformers cannot say whether positions start again.
    if batch_size > 1 and not compiling and "packed_sequence_mask_function" in names:
        raise NotImplementedError(
            f'fulgurite: "{FLASH}" takes position_ids that start again in a batch of 1, got'
            f" {batch_size}: put all documents into one row, or {INSTEAD}"
        )
    if compiling:  # a graph cannot ask whether all keys are kept
        return None if attention_mask is None else attention_mask[:, -kv_length:]
    released = of_transformers("masking_utils", "flash_attention_mask")
    kept: Tensor | None = released(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask
    )
    return kept


def names_in(function: Any) -> Iterator[str]:
    """The names of a mask function and of all that it is made of."""
    if isinstance(function, tuple):
        for part in function:
            yield from names_in(part)
    elif hasattr(function, "__qualname__"):
        yield function.__name__
        yield function.__qualname__.partition(".")[0]
        for cell in function.__closure__ or ():
            yield from names_in(cell.cell_contents)
