"""Warping of a feature map by a flow field."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(features: Tensor, flow: Tensor, padding: Literal["zeros", "border"] = "zeros") -> Tensor:
    """Backward warping: every pixel reads the features where its flow points, `out(p) = features(p + flow(p))`.

    Features of one frame are brought to another in this way (Deep Feature Flow, arXiv 1611.07715, section 3). Sampling
    is that of `ops.ms_deform_attn`, bilinear between pixel centres, of which this is the special case of one head and
    one point of weight 1 at `(p + 0.5 + flow(p)) / size`. A flow that is the same everywhere is a shift by its
    negative: `ops.spatial_shift`, if borders replicate.

    Differentiable in features and flow.

    Args:
        features: `[B, C, H, W]`, floating point.
        flow: `[B, 2, H, W]`, (x, y) in pixels of the map, to the right and down. Half precision is raised to fp32:
            large maps have more pixels than it has numbers.
        padding: what is read off the map: `zeros`, or `border`, the nearest pixel on it. A flow that is not a number
            points off the map, beyond its upper left corner.

    Returns:
        `[B, C, H, W]` in the dtype of `features`.

    Raises:
        ValueError: shapes that do not fit, or another padding.
    """
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
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding must be 'zeros' or 'border', got '{padding}'")
    dtype = torch.promote_types(torch.promote_types(features.dtype, flow.dtype), torch.float32)
    dx, dy = flow.to(dtype).unbind(1)
    x = torch.arange(width, device=flow.device, dtype=dtype) + dx  # [B, H, W]
    y = torch.arange(height, device=flow.device, dtype=dtype)[:, None] + dy
    # grid_sample counts -1 .. 1 between the outer edges. It would spread NaN, and count very far pixels wrongly.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    grid = grid.nan_to_num(nan=-8.0, posinf=8.0, neginf=-8.0).clamp(-8, 8)
    return F.grid_sample(features.to(dtype), grid, padding_mode=padding, align_corners=False).to(features.dtype)
