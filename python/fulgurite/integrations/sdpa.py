"""Every ``scaled_dot_product_attention`` of the process on ``fulgurite::attention``.

The kernel is registered for ``aten::scaled_dot_product_attention`` itself, under keys where torch
has none of its own. So it also serves references to the function that were taken before,
TorchScript, ``nn.MultiheadAttention`` in training, autocast, inference mode and compiled code.
"""

from __future__ import annotations

import sys
from types import TracebackType

import torch
import torch.compiler.config

from fulgurite.integrations._sdpa import scaled_dot_product_attention

__all__ = ["Enabled", "disable", "enable", "is_enabled", "scaled_dot_product_attention"]

KEYS = ("CPU", "AutogradCPU")

# Torch's caches on disk are found by graphs from before the kernel is chosen.
TAG = "fulgurite.sdpa"

_library: torch.library.Library | None = None


class Enabled:
    """What :func:`enable` returns. As a context manager it undoes that call at its end."""

    def __init__(self, switched: bool) -> None:
        self._switched = switched

    def __enter__(self) -> Enabled:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._switched:
            disable()


def enable() -> Enabled:
    """Lead ``scaled_dot_product_attention`` of CPU tensors to ``fulgurite::attention``.

    For the whole process, every thread, until :func:`disable`; a second call changes nothing.
    The meaning is torch's, with these differences: dropout draws other random numbers, and what the
    operator cannot do raises instead of going back to torch's kernels. Compiled code holds the
    kernel it was compiled with: it is dropped here and by :func:`disable`, and compiled again.

    Returns:
        a context manager that disables on exit, if this call was the one that enabled.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from fulgurite.integrations import sdpa
        >>> query = torch.randn(2, 4, 16, 8, requires_grad=True)
        >>> with sdpa.enable():
        ...     out = F.scaled_dot_product_attention(query, query, query, is_causal=True)
        >>> out.shape
        torch.Size([2, 4, 16, 8])
    """
    global _library
    if _library is not None:
        return Enabled(switched=False)
    _library = torch.library.Library("aten", "IMPL")
    for key in KEYS:
        _library.impl("scaled_dot_product_attention", scaled_dot_product_attention, key)
    torch.compiler.config.cache_key_tag += TAG
    _forget_compiled()
    return Enabled(switched=True)


def disable() -> None:
    """Give ``scaled_dot_product_attention`` back to torch, if :func:`enable` has led it away."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None
        config = torch.compiler.config
        config.cache_key_tag = config.cache_key_tag.replace(TAG, "")
        _forget_compiled()


def _forget_compiled() -> None:
    """Drop compiled code, and what torch's tracing remembers of the operator's kernels."""
    operator = torch.ops.aten.scaled_dot_product_attention.default
    getattr(operator, "_dispatch_cache", {}).clear()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def is_enabled() -> bool:
    """Whether calls are led to ``fulgurite::attention``."""
    return _library is not None
