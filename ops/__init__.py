"""Deformable operators on one sampling rule: pixel = location * size - 0.5, bilinear, zero outside.

Importing this package compiles nothing and touches no device; it opens the libraries that `python -m ops.build` left.
"""

from ops.compat import MSDeformAttnFunction
from ops.deform_conv import DeformConv2d, ModulatedDeformConv2d, deform_conv2d
from ops.functional import backend_info, ms_deform_attn, selected_backend
from ops.module import MSDeformAttn

__all__ = [
    "DeformConv2d",
    "MSDeformAttn",
    "MSDeformAttnFunction",
    "ModulatedDeformConv2d",
    "backend_info",
    "deform_conv2d",
    "ms_deform_attn",
    "selected_backend",
]
