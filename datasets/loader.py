"""Samples to padded batches, in an order that only the seed and the epoch decide."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from datasets.coco import CocoDetection, Sample, has_size
from util.errors import UserError


@dataclass
class Target:
    """The objects of one image.

    Attributes:
        boxes: `[T, 4]`, cxcywh in [0, 1] of the unpadded image.
        labels: `[T]`.
        image_id: of the annotation file.
        original_size: (height, width) in pixels of the file.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int
    original_size: tuple[int, int]


@dataclass
class Batch:
    """Images of unequal sizes in one tensor.

    Attributes:
        images: `[B, 3, H, W]`, normalised, zero on padding (right and below).
        padding_mask: `[B, H, W]`, True on padding.
        targets: of each image.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]

    def to(self, device: torch.device) -> "Batch":
        """A copy on another device; does not wait if the memory is pinned."""
        targets = [
            replace(t, boxes=t.boxes.to(device, non_blocking=True), labels=t.labels.to(device, non_blocking=True))
            for t in self.targets
        ]
        return Batch(
            self.images.to(device, non_blocking=True), self.padding_mask.to(device, non_blocking=True), targets
        )

    def pin_memory(self) -> "Batch":
        """A copy in pinned memory (called by the DataLoader)."""
        targets = [replace(t, boxes=t.boxes.pin_memory(), labels=t.labels.pin_memory()) for t in self.targets]
        return Batch(self.images.pin_memory(), self.padding_mask.pin_memory(), targets)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad every image to the largest height and width among them."""
    images, padding_mask = pad_images([s.image for s in samples])
    return Batch(images, padding_mask, [Target(s.boxes, s.labels, s.image_id, s.original_size) for s in samples])


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


class EpochBatches(Sampler):
    """Batches of `(index, epoch)` keys, shuffled by seed and epoch alone.

    The last, incomplete batch is left out, so that every step weighs alike; a data set smaller than one batch makes
    one batch of what it has.

    Args:
        count: samples in the data set.
        batch_size: samples in a batch.
        seed: with the epoch it determines the order.
    """

    def __init__(self, count: int, batch_size: int, seed: int = 0):
        self.count, self.batch_size, self.seed, self.epoch = count, min(batch_size, count), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        for i in range(len(self)):
            yield [(index, self.epoch) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]


class SameSizeBatches(Sampler):
    """Every image once, in batches of images that annotations give one size; of unknown size, alone.

    Evaluation must not depend on the batch. Padding would make it so: it shifts the statistics of the neck's
    GroupNorm over the whole map, and reaches every pixel that a convolution's receptive field joins to the border.

    Args:
        images: entries of the annotation file.
        batch_size: most images in a batch.
    """

    def __init__(self, images: Sequence[dict], batch_size: int):
        groups: dict[tuple, list[int]] = {}
        for index, image in enumerate(images):
            size = (image["width"], image["height"]) if has_size(image) else ("unknown", index)
            groups.setdefault(size, []).append(index)
        self.batches = [g[i : i + batch_size] for g in groups.values() for i in range(0, len(g), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class SampleLoader(DataLoader):
    """A DataLoader whose workers' `UserError` arrives as the sentence it was.

    torch raises it anew with the worker's traceback for a message, of which the sentence is the end.
    """

    def __iter__(self) -> Iterator:
        """Batches of one pass."""
        sentence = None
        try:
            yield from super().__iter__()
        except UserError as error:
            sentence = str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].strip()
            # torch's traceback is a reference cycle around the workers: left to the collector, they end seconds late.
            error.with_traceback(None)
        if sentence is not None:
            raise UserError(sentence)


def train_loader(
    dataset: CocoDetection, batch_size: int, max_images: int | None, workers: int, seed: int, pin_memory: bool
) -> SampleLoader:
    """Yields the micro-batches of each step; call `loader.batch_sampler.set_epoch` before every pass."""
    return SampleLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, seed),
        collate_fn=partial(collate_step, max_images=max_images or batch_size),
        num_workers=min(workers, os.cpu_count() or 1),  # more only slow each other down; results do not change
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own: starting workers must not move the random state of dropout
    )


def eval_loader(dataset: CocoDetection, batch_size: int, workers: int, pin_memory: bool) -> SampleLoader:
    """Yields every image once, in batches without padding."""
    return SampleLoader(
        dataset,
        batch_sampler=SameSizeBatches(dataset.images, batch_size),
        collate_fn=collate,
        num_workers=min(workers, os.cpu_count() or 1),  # more only slow each other down; results do not change
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
