"""Boxes within their images."""

import numpy as np


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes within their images.

    Args:
        boxes: `[N, 4]`, [x, y, width, height] in pixels.
        sizes: `[N, 2]`, (width, height) of the image of each; infinite where it is not known.

    Returns:
        `[N, 4]`, xyxy in pixels, in float32; and `[N]`, whether something finite and positive is left of a box in that.
    """
    finite = np.isfinite(boxes).all(1)
    x, y, w, h = np.where(finite[:, None], boxes, 0.0).T
    with np.errstate(over="ignore"):  # the sum of two large numbers is beyond any image
        corners = np.stack([x.clip(0), y.clip(0), np.minimum(x + w, sizes[:, 0]), np.minimum(y + h, sizes[:, 1])], 1)
        corners = corners.astype(np.float32)
    return corners, finite & np.isfinite(corners).all(1) & (corners[:, 2:] > corners[:, :2]).all(1)
