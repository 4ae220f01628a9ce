"""Samples to padded batches, in an order that only the seed and the epoch decide."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from datasets.annotations import ImageEntry
from datasets.dataset import CocoDetection, Sample
from util.distributed import share_of
from util.errors import UserError
from util.objects import Objects
from util.signals import outlive_signals


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


class EpochBatches(Sampler):
    """Batches of `(index, epoch)` keys, shuffled by seed and epoch alone; of each batch, the share of one process.

    The last, incomplete batch is left out, so that every step weighs alike; a data set smaller than one batch makes
    one batch of what it has.

    Args:
        count: samples in the data set.
        batch_size: samples in a batch, over all processes.
        seed: with the epoch it determines the order.
        share: (rank, number of processes).
        groups: a number for each sample; batches are filled from one group as far as that goes. What groups leave
            over makes mixed batches, so that there are as many batches as without groups.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        groups: Sequence[int] | None = None,
    ):
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.rank, self.size = share
        self.groups = groups
        self.epoch, self.first = 0, 0

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the order of the next pass, and the batch it starts with."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        if self.groups is None:
            batches = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]
        else:
            batches = self._grouped(order, self.groups, generator)
        part = share_of(self.batch_size, self.size, self.rank)
        for batch in batches[self.first :]:
            yield [(index, self.epoch) for index in batch[part.start : part.stop]]

    def _grouped(self, order: list[int], groups: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        waiting: dict[int, list[int]] = {}
        batches = []
        for index in order:
            group = waiting.setdefault(groups[index], [])
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(waiting.pop(groups[index]))
        left = [index for group in waiting.values() for index in group]
        while len(batches) < len(self):
            batches.append(left[: self.batch_size])
            left = left[self.batch_size :]
        # Mixed batches came last; a pass must not end alike every time.
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def aspect_groups(images: Sequence[ImageEntry]) -> list[int]:
    """0 for each image that is at least as wide as high (or of unknown size), 1 for each that is higher."""
    return [int(image.size is not None and image.size[1] > image.size[0]) for image in images]


class FixedBatches(Sampler):
    """Every image once, in the same batches each time.

    Args:
        images: entries of the annotation file.
        batch_size: most images in a batch.
        share: (rank, number of processes); batches are dealt out in turn, none of them twice.
        limit: batches to take in all; None takes every one.
    """

    def __init__(
        self, images: Sequence[ImageEntry], batch_size: int, share: tuple[int, int] = (0, 1), limit: int | None = None
    ):
        batches = [g[i : i + batch_size] for g in self.groups(images) for i in range(0, len(g), batch_size)]
        self.batches = batches[:limit][share[0] :: share[1]]

    def groups(self, images: Sequence[ImageEntry]) -> Iterable[list[int]]:
        """Indices of images, every one once; a batch is of one group, in its order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class SameSizeBatches(FixedBatches):
    """Batches of images that annotations give one size; of unknown size, alone.

    Evaluation must not depend on the batch. Padding would make it so: it shifts the statistics of the neck's
    GroupNorm over the whole map, and reaches every pixel that a convolution's receptive field joins to the border.
    """

    def groups(self, images: Sequence[ImageEntry]) -> Iterable[list[int]]:
        """A group for each size."""
        groups: dict[tuple, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.size or ("unknown", index), []).append(index)
        return groups.values()


class NeighbourBatches(FixedBatches):
    """Batches of neighbours in the order of ids, whatever their sizes: they have to be padded.

    The published figures of the original were computed so, two images at a time.
    """

    def groups(self, images: Sequence[ImageEntry]) -> Iterable[list[int]]:
        """One group of all, ids that are text after the numbers."""
        return [sorted(range(len(images)), key=lambda i: (isinstance(images[i].id, str), images[i].id))]


class SampleLoader(DataLoader):
    """A DataLoader whose workers' `UserError` arrives as the sentence it was.

    torch raises it anew with the worker's traceback for a message, of which the sentence is the end.
    """

    dataset: CocoDetection

    def __iter__(self) -> Iterator:  # type: ignore[override]  # a generator, where torch has an iterator class
        """Batches of one pass."""
        sentence = None
        try:
            yield from super().__iter__()
        except UserError as error:
            sentence = str(error).rpartition(f"{type(error).__module__}.{type(error).__name__}: ")[2].strip()
            # torch's traceback is a reference cycle around the workers: left to the collector, they end seconds late.
            error.with_traceback(None)
        if sentence is not None:
            raise UserError(sentence)

    def close(self) -> None:
        """End the workers that stay from pass to pass."""
        workers: Any = self._iterator
        if workers is not None:
            workers._shutdown_workers()
            self._iterator = None


class TrainLoader(SampleLoader):
    """Yields one process's micro-batches of each step; call `batches.set_epoch` before every pass.

    Args:
        batches: the order of samples.
        options: the options of `SampleLoader`.
    """

    def __init__(self, dataset: CocoDetection, batches: EpochBatches, **options):
        super().__init__(dataset, batch_sampler=batches, **options)
        self.batches = batches


def train_loader(
    dataset: CocoDetection,
    batch_size: int,
    max_images: int | None,
    workers: int,
    seed: int,
    pin_memory: bool,
    share: tuple[int, int] = (0, 1),
    group_by_aspect: bool = False,
) -> TrainLoader:
    """Yields one process's micro-batches of each step; call `loader.batches.set_epoch` before every pass."""
    groups = aspect_groups(dataset.images) if group_by_aspect else None
    return TrainLoader(
        dataset,
        EpochBatches(len(dataset), batch_size, seed, share, groups),
        collate_fn=partial(collate_step, max_images=max_images or batch_size),
        persistent_workers=workers > 0,
        **_settings(workers, pin_memory),
    )


def eval_loader(
    dataset: CocoDetection,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    share: tuple[int, int] = (0, 1),
    limit: int | None = None,
    padding: str = "none",
) -> SampleLoader:
    """Yields every image once over all processes.

    Args:
        dataset: the images.
        batch_size: most images in a batch.
        workers: processes that read.
        pin_memory: for a transfer to a GPU.
        share: (rank, number of processes).
        limit: batches to take in all; None takes every one.
        padding: `none` puts only images of one size together; `batch` takes neighbours by id and pads them.
    """
    kind = NeighbourBatches if padding == "batch" else SameSizeBatches
    batches = kind(dataset.images, batch_size, share, limit)
    return SampleLoader(dataset, batch_sampler=batches, collate_fn=collate, **_settings(workers, pin_memory))


def _settings(workers: int, pin_memory: bool) -> dict:
    processors = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return {
        # More than there are processors only slow each other down; results do not change.
        "num_workers": min(workers, max(1, processors)),
        "pin_memory": pin_memory,
        "worker_init_fn": outlive_signals,
        "generator": torch.Generator(),  # its own: starting workers must not move the random state of dropout
    }
