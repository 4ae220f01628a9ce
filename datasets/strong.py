"""Strong augmentations of the first epochs: which of them an image gets."""

from collections.abc import Callable, Sequence

import torch
from torchvision.transforms import v2

from datasets.copy_paste import copy_paste
from datasets.jitter import LargeScaleJitter
from datasets.mixup import mixup
from datasets.mosaic import mosaic
from datasets.transforms import ShortestSize, View, color_steps, flip_steps
from util.config import DataConfig


class StrongTransform:
    """Mosaic or large-scale jitter or the ordinary transform; then copy-paste, then mixup.

    More objects an image make more matches for one-to-one matching to learn from (dense one-to-one, DEIM, arXiv
    2412.04234, section 3.2, which has mosaic and mixup in the first half of training). Other images are read for it;
    which ones follows from torch's random state, as every other draw does. No output is larger than what the
    ordinary transform makes of images.

    Args:
        ordinary: the transform of an image that gets neither mosaic nor jitter, and of partners.
        sizes, max_size: shorter sides and bound of the longer one, in pixels.
        horizontal_flip, vertical_flip: probabilities.
        color_jitter: strength.
        mosaic, mixup, large_scale_jitter, copy_paste: probabilities; nothing is drawn for one that is 0.
    """

    def __init__(
        self,
        ordinary: Callable,
        sizes: Sequence[int],
        max_size: int,
        horizontal_flip: float = 0.5,
        vertical_flip: float = 0.0,
        color_jitter: float = 0.0,
        mosaic: float = 0.0,
        mixup: float = 0.0,
        large_scale_jitter: float = 0.0,
        copy_paste: float = 0.0,
    ):
        self.ordinary = ordinary
        self.flips, self.colors = flip_steps(horizontal_flip, vertical_flip), color_steps(color_jitter)
        self.resize = ShortestSize(sizes, max_size)
        # At a tenth of the size some objects end below a pixel; nobody could learn from those.
        seen = v2.SanitizeBoundingBoxes(min_size=1.0)
        self.jittered = v2.Compose([*self.flips, LargeScaleJitter(sizes, max_size), seen, *self.colors])
        self.mosaic, self.mixup = mosaic, mixup
        self.large_scale_jitter, self.copy_paste = large_scale_jitter, copy_paste

    def __call__(self, view: View, partner: Callable[[], View]) -> View:
        """An augmented image `[3, H, W]` with its boxes and labels.

        Args:
            view: an image as it was read.
            partner: draws another one and reads it.
        """
        made = self._mosaic(view, partner) if happens(self.mosaic) else self._alone(view)
        if happens(self.copy_paste):
            made = copy_paste(made, self._alone(partner()))
        if happens(self.mixup):
            made = mixup(made, self._alone(partner()))
        return made

    def _alone(self, view: View) -> View:
        return (self.jittered if happens(self.large_scale_jitter) else self.ordinary)(*view)

    def _mosaic(self, view: View, partner: Callable[[], View]) -> View:
        size = self.resize.make_params([view[0]])["size"]
        views = [through(self.flips, one) for one in (view, partner(), partner(), partner())]
        return through(self.colors, mosaic(views, size))


def happens(probability: float) -> bool:
    """Whether something does that has this probability; draws nothing if it is 0."""
    return probability > 0 and bool(torch.rand(()) < probability)


def through(steps: Sequence[v2.Transform], view: View) -> View:
    """An image through one step after the other."""
    for step in steps:
        view = step(*view)
    return view


def images_in_one(data: DataConfig) -> int:
    """Of how many images a sample may have the objects."""
    return (4 if data.mosaic else 1) + bool(data.copy_paste) + bool(data.mixup)
