"""Batches on the device: moved as bytes, padded, normalised there."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import Batch
from util.objects import Objects


class ToDevice:
    """Takes batches of uint8 images to a device and to what backbones expect.

    Bytes are a quarter of what floats would be to pad, pin and transfer; nothing waits if the memory is pinned.

    Args:
        device: to move to.
        mean, std: of each channel, red first, in [0, 1]: the backbone's.
        dtype: type of the images there.
    """

    def __init__(
        self, device: torch.device, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
    ):
        self.device, self.dtype = device, dtype
        # On the device from the start: a constant that is copied in every step would wait for it.
        self.mean = torch.tensor(mean, dtype=dtype, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=dtype, device=device).view(3, 1, 1)

    def __call__(self, batch: Batch, size: tuple[int, int] | None = None) -> Batch:
        """Move, pad and normalise.

        Args:
            batch: images `[B, 3, h, w]` in uint8.
            size: (H, W) to pad to, at least (h, w); None leaves the size as it is.

        Returns:
            Images `[B, 3, H, W]` of `dtype`, zero on padding; padding_mask and objects beside them.
        """
        images = batch.images.to(self.device, non_blocking=True)
        padding_mask = batch.padding_mask.to(self.device, non_blocking=True)
        if size is not None and size != tuple(images.shape[-2:]):
            more = (0, size[1] - images.shape[-1], 0, size[0] - images.shape[-2])
            images, padding_mask = F.pad(images, more), F.pad(padding_mask, more, value=True)
        objects = self._move(batch.objects) if batch.objects else []
        return Batch(self.normalise(images, padding_mask), padding_mask, objects, batch.sizes)

    def _move(self, objects: Sequence[Objects]) -> list[Objects]:
        """Two transfers for the objects of all images, and one for what else is known of their classes."""
        boxes, labels = self._together([o.boxes for o in objects]), self._together([o.labels for o in objects])
        known = [o.exhaustive for o in objects if o.exhaustive is not None]
        exhaustive = self._together(known) if len(known) == len(objects) else [None] * len(objects)
        columns = zip(objects, boxes, labels, exhaustive)
        return [replace(o, boxes=b, labels=n, exhaustive=e) for o, b, n, e in columns]

    def _together(self, of_images: Sequence[Tensor]) -> Sequence[Tensor]:
        """A tensor of each image, all in one transfer."""
        return torch.cat(list(of_images)).to(self.device, non_blocking=True).split([len(t) for t in of_images])

    def normalise(self, images: Tensor, padding_mask: Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` with the backbone's mean and deviation; zero where padding_mask `[B, H, W]` is True."""
        scaled = images.to(self.dtype).mul_(1 / 255)
        return scaled.sub_(self.mean).div_(self.std).masked_fill_(padding_mask[:, None], 0.0)
