"""One typed, scriptable function for each operator."""

from fulgurite.nn.functional.attention import attention, rope

__all__ = ["attention", "rope"]
