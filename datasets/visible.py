"""How much of an object must stay in sight where an image is cut or covered."""

import torch
from torchvision.transforms.v2 import functional as TF

from datasets.transforms import View, target_on

# Share of a box. Of less, nobody could tell what it is; with a larger one, what can be told would go without a label.
VISIBLE = 0.2


def crop_visible(view: View, top: int, left: int, height: int, width: int) -> View:
    """A rectangle of an image, and the objects of which at least the share `VISIBLE` lies in it.

    Args:
        view: image `[3, H, W]`, boxes `[T, 4]` and labels.
        top, left, height, width: the rectangle, in whole pixels.

    Returns:
        Image `[3, height, width]`, boxes clipped to it and in its pixels, and their labels.
    """
    image, target = view
    boxes = TF.crop(target["boxes"], top, left, height, width).as_subclass(torch.Tensor)
    kept = (areas(boxes) >= VISIBLE * areas(target["boxes"])) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    seen = target_on((height, width), boxes[kept], target["labels"][kept])
    return TF.crop(image, top, left, height, width), target | seen


def areas(boxes: torch.Tensor) -> torch.Tensor:
    """`[T]`, of boxes `[T, 4]` in xyxy."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]
