"""Mosaic: four images in the place of one."""

from collections.abc import Sequence
from itertools import product

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from datasets.exhaustive import exhaustive_in_all
from datasets.transforms import View, draw_int, target_on
from datasets.visible import crop_visible

NEAREST, FARTHEST = 0.35, 0.65  # share of a side at which the four meet


def mosaic(views: Sequence[View], size: tuple[int, int]) -> View:
    """Four images side by side, with the objects of all (arXiv 2004.10934, section 3.3).

    The canvas has the size of one ordinary image, so each of the four is about half as large as it would be, between
    0.35 and 0.65, and so are its objects: those that are small already need large `train_sizes`. Each image keeps its
    shape and fills its quarter, a part that is drawn of it where the shapes differ; so no pixel is wasted on padding.

    Args:
        views: four images of any sizes, each with its boxes and labels.
        size: (height, width) of the canvas.

    Returns:
        Image `[3, height, width]`; boxes clipped to the quarters, without those of which less than
        `visible.VISIBLE` is seen; and their labels.
    """
    y, x = (draw_int(round(NEAREST * side), round(FARTHEST * side)) for side in size)
    canvas = torch.zeros(3, *size, dtype=torch.uint8)
    boxes, labels, parts = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], []
    rows, columns = ((0, y), (y, size[0])), ((0, x), (x, size[1]))
    for view, ((top, bottom), (left, right)) in zip(views, product(rows, columns), strict=True):
        if bottom == top or right == left:  # of a canvas a pixel wide
            continue
        image, target = cover(view, (bottom - top, right - left))
        canvas[:, top:bottom, left:right] = image
        boxes.append(target["boxes"] + torch.tensor([left, top, left, top]))
        labels.append(target["labels"])
        parts.append(target)
    return tv_tensors.Image(canvas), target_on(size, torch.cat(boxes), torch.cat(labels)) | exhaustive_in_all(parts)


def cover(view: View, size: tuple[int, int]) -> View:
    """As much of an image as has the shape of `size` (height, width), from a place that is drawn, resized to it."""
    height, width = view[0].shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    rows, columns = min(height, max(1, round(size[0] / scale))), min(width, max(1, round(size[1] / scale)))
    top, left = draw_int(0, height - rows), draw_int(0, width - columns)
    image, target = crop_visible(view, top, left, rows, columns)
    return TF.resize(image, list(size)), target | {"boxes": TF.resize(target["boxes"], list(size))}
