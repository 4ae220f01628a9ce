"""Copy-paste: objects of one image on another."""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from datasets.exhaustive import exhaustive_in_all
from datasets.transforms import View, draw_int, target_on
from datasets.visible import VISIBLE, crop_visible

LARGEST = 0.25  # share of the canvas: what is larger would hide most of the image


def copy_paste(view: View, source: View) -> View:
    """A random half of another image's objects, pasted at random places (arXiv 2012.07177, section 3).

    The paper cuts objects out along their masks. Here only boxes are known: what is pasted is the **rectangle of a
    box**, with the background in it and with whatever other objects lie in it. An object that a rectangle hides nearly
    fully is dropped (`visible.VISIBLE`); the box of one that it hides in part shrinks to what is still seen.

    Args:
        view: image `[3, H, W]`, boxes `[T, 4]` and labels.
        source: another image of any size. Objects larger than a quarter of the canvas, or that do not fit, are no use.

    Returns:
        Image `[3, H, W]`, boxes and labels, the image's own before the pasted ones.
    """
    image, target = view
    height, width = image.shape[-2:]
    canvas = image.as_subclass(torch.Tensor).clone()
    layers = np.zeros((height, width), dtype=np.int32)  # which paste each pixel is of, 0 for the image
    parts = [(target["boxes"].as_subclass(Tensor), target["labels"])]
    chosen = torch.rand(len(source[1]["boxes"])) < 0.5
    for box in source[1]["boxes"][chosen].tolist():
        left, top, right, bottom = whole_pixels(box)
        h, w = bottom - top, right - left
        if h > height or w > width or h * w > LARGEST * height * width:
            continue
        patch, objects = crop_visible(source, top, left, h, w)
        y, x = draw_int(0, height - h), draw_int(0, width - w)
        canvas[:, y : y + h, x : x + w] = patch
        layers[y : y + h, x : x + w] = len(parts)
        parts.append((objects["boxes"] + torch.tensor([x, y, x, y]), objects["labels"]))
    seen = [in_sight(boxes, labels, layers, layer) for layer, (boxes, labels) in enumerate(parts)]
    boxes, labels = (torch.cat(column) for column in zip(*seen))
    known = exhaustive_in_all([target, source[1]] if len(parts) > 1 else [target])
    return tv_tensors.Image(canvas), target_on((height, width), boxes, labels) | known


def in_sight(boxes: Tensor, labels: Tensor, layers: np.ndarray, layer: int) -> tuple[Tensor, Tensor]:
    """What is still seen of the objects of one layer.

    Args:
        boxes, labels: `[T, 4]`, xyxy in pixels, and `[T]`.
        layers: `[H, W]`, the layer that is seen at each pixel.
        layer: of the objects.

    Returns:
        The same without objects that are hidden nearly fully; boxes end where something else hides the rest.
    """
    found, kept = boxes.tolist(), []
    for i, box in enumerate(found):
        left, top, right, bottom = whole_pixels(box)
        seen = layers[top:bottom, left:right] == layer
        if seen.mean() < VISIBLE:
            continue
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        found[i] = [
            max(box[0], left + int(columns[0])),
            max(box[1], top + int(rows[0])),
            min(box[2], left + int(columns[-1]) + 1),
            min(box[3], top + int(rows[-1]) + 1),
        ]
        kept.append(i)
    return torch.tensor([found[i] for i in kept], dtype=boxes.dtype).reshape(-1, 4), labels[kept]


def whole_pixels(box: list[float]) -> tuple[int, int, int, int]:
    """The pixels that a box touches: left, top, and right and bottom, which are the first beyond it."""
    return math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
