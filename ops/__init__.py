"""Deformable operators on one sampling rule: pixel = location * size - 0.5, bilinear, zero outside.

Importing this package compiles nothing and touches no device. It opens the libraries that `python -m ops.build` made.
"""

from ops.attention2d import DeformAttn2d
from ops.compat import MSDeformAttnFunction
from ops.deform_conv import DeformConv2d, ModulatedDeformConv2d, deform_conv2d
from ops.functional import backend_info, ms_deform_attn, selected_backend
from ops.module import MSDeformAttn
from ops.roi_layers import DeformPSRoIPool, DeformRoIPool, ModulatedDeformRoIPool
from ops.roi_pool import deform_roi_pool, ps_roi_pool
from ops.shift import spatial_shift
from ops.warp import warp

__all__ = [
    "DeformAttn2d",
    "DeformConv2d",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "MSDeformAttn",
    "MSDeformAttnFunction",
    "ModulatedDeformConv2d",
    "ModulatedDeformRoIPool",
    "backend_info",
    "deform_conv2d",
    "deform_roi_pool",
    "ms_deform_attn",
    "ps_roi_pool",
    "selected_backend",
    "spatial_shift",
    "warp",
]
