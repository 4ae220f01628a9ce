"""Deformable operators on one sampling rule: pixel = location * size - 0.5, bilinear, zero outside.

Importing this package compiles nothing and touches no device.
"""

from ops.functional import backend_info, ms_deform_attn
from ops.module import MSDeformAttn

__all__ = ["MSDeformAttn", "backend_info", "ms_deform_attn"]
