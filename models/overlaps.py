"""How boxes overlap: IoU and its generalisation."""

import torch
from torch import Tensor
from torchvision.ops import box_convert

LEAST = 1e-12  # smallest area, of the image's: a millionth of it wide and high


def generalized_iou(a: Tensor, b: Tensor, least: float = LEAST) -> Tensor:
    """GIoU (arXiv 1902.09630) of boxes cxcywh that broadcast against each other: `[..., 4]` -> `[...]`.

    Areas count as `least` at least, a millionth of the image wide and high, so that empty boxes give no NaN. All others
    are exact: a number added to every area would lower the IoU of thin ones.
    """
    a, b = box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy")
    intersection, union = _areas(a, b)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = _area(outer.clamp(min=0))
    return intersection / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


def plain_iou(a: Tensor, b: Tensor, least: float = LEAST) -> Tensor:
    """IoU of boxes as in `generalized_iou`: `[..., 4]` -> `[...]`."""
    intersection, union = _areas(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy"))
    return intersection / union.clamp(min=least)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes xyxy, `[..., 4]` -> `[...]` each."""
    inner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = _area(inner.clamp(min=0))
    return intersection, _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - intersection


def _area(size: Tensor) -> Tensor:
    """Width times height, `[..., 2]` -> `[...]`. The derivative of `prod` would ask the device for zeros, and wait."""
    return size[..., 0] * size[..., 1]


def crossed_iou(a: Tensor, b: Tensor, least: float = LEAST) -> Tensor:
    """`generalized_iou` of planes, to the bit and without a gradient: `[4, ...]` -> `[...]`.

    Coordinates are in front: a plane is contiguous in memory, and many pairs of few boxes, `[4, T, 1]` with
    `[4, 1, Q]`, take a fraction of the time.
    """
    a, b = _corners(a), _corners(b)
    inner = torch.minimum(a[2:], b[2:]).sub_(torch.maximum(a[:2], b[:2])).clamp_(min=0)
    outer = torch.maximum(a[2:], b[2:]).sub_(torch.minimum(a[:2], b[:2])).clamp_(min=0)
    intersection, hull = inner[0].mul_(inner[1]), outer[0].mul_(outer[1])
    size_a, size_b = a[2:] - a[:2], b[2:] - b[:2]
    union = (size_a[0] * size_a[1] + size_b[0] * size_b[1]).sub_(intersection)
    beyond = (hull - union).div_(hull.clamp_(min=least))
    return intersection.div_(union.clamp_(min=least)).sub_(beyond)


def _corners(boxes: Tensor) -> Tensor:
    """From cxcywh to xyxy, as torchvision does: `[4, ...]`."""
    half = 0.5 * boxes[2:]
    return torch.cat([boxes[:2] - half, boxes[:2] + half])
