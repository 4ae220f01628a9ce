"""Which images make a batch, in an order that only the seed and the epoch decide."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from datasets.annotations import ImageEntry
from util.distributed import share_of


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
