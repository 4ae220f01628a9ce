"""Loaders of batches, for training and for evaluation."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from datasets.batch import collate, collate_step
from datasets.batch_order import EpochBatches, NeighbourBatches, SameSizeBatches, aspect_groups
from datasets.dataset import CocoDetection
from util.errors import UserError
from util.signals import outlive_signals


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
