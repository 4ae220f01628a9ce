"""Samples to one padded batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.dataset import Sample
from util.objects import Objects


@dataclass
class Batch:
    """Images of unequal sizes in one tensor.

    Attributes:
        images: `[B, 3, H, W]`, uint8 as loaded, normalised by `datasets.device`; zero on padding (right and below).
        padding_mask: `[B, H, W]`, True on padding.
        objects: the objects of each image; empty where only detections are asked for.
        sizes: (height, width) in pixels of each image's file.
    """

    images: Tensor
    padding_mask: Tensor
    objects: list[Objects]
    sizes: list[tuple[int, int]]

    def pin_memory(self) -> "Batch":
        """Images and mask in pinned memory, called by the DataLoader; a few boxes are not worth a page."""
        return replace(self, images=self.images.pin_memory(), padding_mask=self.padding_mask.pin_memory())


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad every image to the largest height and width among them."""
    images, padding_mask = pad_images([s.image for s in samples])
    return Batch(images, padding_mask, [s.objects for s in samples], [s.original_size for s in samples])


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`[3, H_i, W_i]` each -> images `[B, 3, H, W]`, zero on padding, and padding_mask `[B, H, W]`."""
    height, width = (max(image.shape[d] for image in images) for d in (1, 2))
    padded = images[0].new_zeros(len(images), 3, height, width)
    padding_mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        padded[i, :, : image.shape[1], : image.shape[2]] = image
        padding_mask[i, : image.shape[1], : image.shape[2]] = False
    return padded, padding_mask


def collate_step(samples: Sequence[Sample], max_images: int) -> list[Batch]:
    """The micro-batches of one optimizer step, at most `max_images` each."""
    return [collate(samples[i : i + max_images]) for i in range(0, len(samples), max_images)]
