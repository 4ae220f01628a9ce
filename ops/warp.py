"""Warping of a feature map by a flow field."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.arguments import need_tensors, said


def warp(features: Tensor, flow: Tensor, padding: Literal["zeros", "border"] = "zeros") -> Tensor:
    """Backward warping: every pixel reads the features where its flow points, `out(p) = features(p + flow(p))`.

    This moves features from one frame to another (Deep Feature Flow, arXiv 1611.07715, section 3). Sampling is bilinear
    between pixel centres, as in `ops.ms_deform_attn` with one head and one point of weight 1 at
    `(p + 0.5 + flow(p)) / size`. A flow that is the same everywhere is a shift by its negative; with `border` padding
    it is `ops.spatial_shift`.

    It is differentiable in features and flow.

    Args:
        features: `[B, C, H, W]`, floating point.
        flow: `[B, 2, H, W]`, (x, y) in pixels of the map, to the right and down. Half precision is cast to fp32, but
            cannot tell all pixels of a large map apart.
        padding: what is read outside the map: `zeros`, or `border`, the nearest pixel on it. A flow that is NaN points
            outside, beyond the upper left corner.

    Returns:
        `[B, C, H, W]` in the dtype of `features`.

    Raises:
        ValueError: shapes or devices do not fit, or the padding is unknown.
    """
    need_tensors(features=features, flow=flow)
    if features.dim() != 4 or not features.is_floating_point() or 0 in features.shape[1:]:
        raise ValueError(
            f"features must be [B, C, H, W], floating point, with pixels, got {list(features.shape)} of "
            f"{features.dtype}"
        )
    batch, _, height, width = features.shape
    if flow.shape != (batch, 2, height, width) or not flow.is_floating_point():
        raise ValueError(
            f"flow must be {[batch, 2, height, width]}, floating point, to fit features, got {list(flow.shape)} of "
            f"{flow.dtype}"
        )
    if flow.device != features.device:
        raise ValueError(f"flow is on {flow.device}, but features is on {features.device}")
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding must be 'zeros' or 'border', got {said(padding)}")
    dtype = torch.promote_types(torch.promote_types(features.dtype, flow.dtype), torch.float32)
    dx, dy = flow.to(dtype).unbind(1)
    x = torch.arange(width, device=flow.device, dtype=dtype) + dx  # [B, H, W]
    y = torch.arange(height, device=flow.device, dtype=dtype)[:, None] + dy
    # grid_sample counts -1 .. 1 between the outer edges. It would spread NaN, and misplace very far pixels.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    grid = grid.nan_to_num(nan=-8.0, posinf=8.0, neginf=-8.0).clamp(-8, 8)
    return F.grid_sample(features.to(dtype), grid, padding_mode=padding, align_corners=False).to(features.dtype)
