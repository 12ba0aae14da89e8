"""Fused training operators for PyTorch: attention, mixture of experts, AdamW and loss scaling.

Importing the package registers the operators under ``torch.ops.fulgurite``.
"""

from fulgurite._load import load as _load

_C = _load()

from fulgurite import amp, memory, nn, optim  # noqa: E402
from fulgurite._build_info import VERSION as __version__  # noqa: E402
from fulgurite._config import explain, show_config  # noqa: E402
from fulgurite._flops import register as _register_flops  # noqa: E402

_register_flops()

__all__ = ["__version__", "amp", "explain", "memory", "nn", "optim", "show_config"]
