"""Optimizers."""

from fulgurite.optim.adamw import AdamW

__all__ = ["AdamW"]
