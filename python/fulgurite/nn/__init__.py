"""Modules in the manner of :mod:`torch.nn`, on the operators of ``fulgurite.nn.functional``."""

from fulgurite.nn import functional as functional
from fulgurite.nn.attention import Attention, rotary_table
from fulgurite.nn.moe import MoE, aux_losses
from fulgurite.nn.norm import RMSNorm

__all__ = ["Attention", "MoE", "RMSNorm", "aux_losses", "functional", "rotary_table"]
