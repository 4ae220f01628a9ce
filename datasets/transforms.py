"""torchvision v2 pipelines for training and evaluation."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from datasets.sizes import resized

# A uint8 image [3, H, W]; {"boxes": [T, 4] xyxy in its pixels, "labels": [T]}, and what `datasets.exhaustive` adds.
View = tuple[tv_tensors.Image, dict]


def draw_int(low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))


def target_on(size: tuple[int, int], boxes: torch.Tensor, labels: torch.Tensor) -> dict:
    """Boxes `[T, 4]`, xyxy in pixels of a canvas (height, width), and labels `[T]`, as pipelines take them."""
    return {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size), "labels": labels}


class RandomSizeCrop(v2.Transform):
    """Crop a rectangle whose sides are drawn from [smallest, largest], each no longer than the image's own side."""

    def __init__(self, smallest: int, largest: int):
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list) -> dict:
        """Draw height, width, top and left."""
        height, width = v2.query_size(flat_inputs)
        h = draw_int(min(self.smallest, height), min(self.largest, height))
        w = draw_int(min(self.smallest, width), min(self.largest, width))
        return {"height": h, "width": w, "top": draw_int(0, height - h), "left": draw_int(0, width - w)}

    def transform(self, inpt, params: dict):
        """Crop an image, or shift and clip boxes."""
        return self._call_kernel(TF.crop, inpt, **params)


class ShortestSize(v2.Transform):
    """Resize the shorter side to a size drawn from `sizes`, as `resized` rounds it.

    Args:
        sizes: shorter sides in pixels.
        max_size: bound of the longer side; None is none.
    """

    def __init__(self, sizes: Sequence[int], max_size: int | None = None):
        super().__init__()
        self.sizes, self.max_size = list(sizes), max_size

    def make_params(self, flat_inputs: list) -> dict:
        """Draw the size."""
        size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return {"size": resized(v2.query_size(flat_inputs), size, self.max_size)}

    def transform(self, inpt, params: dict):
        """Resize an image, or scale boxes."""
        return self._call_kernel(TF.resize, inpt, **params)


class DropEmptyBoxes(nn.Module):
    """Leave out the boxes, and their labels, of which nothing is left: no width or no height, in float32."""

    def forward(self, image, target: dict) -> tuple:
        """Image and `{"boxes": [T, 4] xyxy, "labels": [T], ...}`, to the same with fewer boxes."""
        boxes = target["boxes"]
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        left = {"boxes": tv_tensors.wrap(boxes[kept], like=boxes), "labels": target["labels"][kept]}
        return image, target | left


def flip_steps(horizontal: float, vertical: float) -> list[v2.Transform]:
    """Flips with these probabilities."""
    steps: list[v2.Transform] = []
    if horizontal > 0:
        steps.append(v2.RandomHorizontalFlip(horizontal))
    if vertical > 0:
        steps.append(v2.RandomVerticalFlip(vertical))
    return steps


def color_steps(strength: float) -> list[v2.Transform]:
    """Random brightness, contrast and saturation of this strength."""
    return [v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength)] if strength > 0 else []


def train_transform(
    sizes: Sequence[int],
    max_size: int,
    crop: bool = True,
    crop_sizes: Sequence[int] = (400, 500, 600),
    crop_range: Sequence[int] = (384, 600),
    horizontal_flip: float = 0.5,
    vertical_flip: float = 0.0,
    color_jitter: float = 0.0,
) -> v2.Transform:
    """The paper's training recipe (arXiv 2010.04159, section 5, which is that of 2005.12872, appendix A.4).

    Flip; then, evenly, resize, or resize, crop and resize again. Boxes of which a crop leaves nothing are dropped; all
    others stay, however thin. Images stay uint8: they are normalised on the device.

    Args:
        sizes: shorter sides to draw from, in pixels.
        max_size: bound of the longer side.
        crop: whether half of the images are cropped.
        crop_sizes: shorter sides before the crop.
        crop_range: smallest and largest side of the crop.
        horizontal_flip, vertical_flip: probabilities.
        color_jitter: strength of random brightness, contrast and saturation.
    """
    resize = ShortestSize(sizes, max_size)
    steps = flip_steps(horizontal_flip, vertical_flip)
    if crop:
        cropped = v2.Compose([ShortestSize(crop_sizes), RandomSizeCrop(*crop_range), DropEmptyBoxes(), resize])
        steps.append(v2.RandomChoice([resize, cropped]))
    else:
        steps.append(resize)
    return v2.Compose([*steps, *color_steps(color_jitter)])


def eval_transform(size: int, max_size: int) -> v2.Transform:
    """Resize the shorter side to `size`, the longer one to about `max_size` at most; images stay uint8."""
    return v2.Compose([ShortestSize([size], max_size)])


def to_image(picture: Image.Image) -> tv_tensors.Image:
    """A PIL image as a uint8 tensor `[3, H, W]` that the pipelines take."""
    return TF.to_image(picture)
