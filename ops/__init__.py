"""Deformable operators on one sampling rule: pixel = location * size - 0.5, bilinear, zero outside.

Importing this package compiles nothing and touches no device; it opens the libraries that `python -m ops.build` left.
"""

from ops.compat import MSDeformAttnFunction
from ops.functional import backend_info, ms_deform_attn, selected_backend
from ops.module import MSDeformAttn

__all__ = ["MSDeformAttn", "MSDeformAttnFunction", "backend_info", "ms_deform_attn", "selected_backend"]
