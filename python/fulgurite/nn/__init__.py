"""Modules in the manner of :mod:`torch.nn`, on the operators of ``fulgurite.nn.functional``.

Beside them, what the operators take as inputs: positions, masks and layouts of published models.
"""

from fulgurite.nn import functional as functional
from fulgurite.nn.attention import Attention
from fulgurite.nn.counted import aux_losses
from fulgurite.nn.decomposed import decomposed_bias_inputs
from fulgurite.nn.layout import (
    fixed_layout,
    fixed_mask,
    local_layout,
    local_mask,
    strided_layout,
    strided_mask,
)
from fulgurite.nn.load import LoadStatistics
from fulgurite.nn.mamba import Mamba
from fulgurite.nn.moe import MoE
from fulgurite.nn.norm import RMSNorm
from fulgurite.nn.position import (
    RelativePositionBias,
    alibi_slopes,
    log_n_scale,
    relative_position_bucket,
)
from fulgurite.nn.rotary import (
    rotary_table,
    rotary_table_2d,
    rotary_table_interpolated,
    rotary_table_ntk,
    rotary_table_yarn,
)
from fulgurite.nn.router import Router
from fulgurite.nn.routing import routing
from fulgurite.nn.short_convolution import ShortConvolution
from fulgurite.nn.tree import tree_depths, tree_mask, tree_parents
from fulgurite.nn.window import shifted_window_mask, window_partition, window_reverse
from fulgurite.nn.window_bias import (
    ContinuousPositionBias,
    WindowPositionBias,
    log_spaced_coordinates,
    window_position_index,
)

__all__ = [
    "Attention",
    "ContinuousPositionBias",
    "LoadStatistics",
    "Mamba",
    "MoE",
    "RMSNorm",
    "RelativePositionBias",
    "Router",
    "ShortConvolution",
    "WindowPositionBias",
    "alibi_slopes",
    "aux_losses",
    "decomposed_bias_inputs",
    "fixed_layout",
    "fixed_mask",
    "functional",
    "local_layout",
    "local_mask",
    "log_n_scale",
    "log_spaced_coordinates",
    "relative_position_bucket",
    "rotary_table",
    "rotary_table_2d",
    "rotary_table_interpolated",
    "rotary_table_ntk",
    "rotary_table_yarn",
    "routing",
    "shifted_window_mask",
    "strided_layout",
    "strided_mask",
    "tree_depths",
    "tree_mask",
    "tree_parents",
    "window_partition",
    "window_position_index",
    "window_reverse",
]
