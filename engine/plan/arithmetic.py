"""The arithmetic of a plan: numbers in, numbers out."""

import math
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Plan:
    """A training on `nodes` machines of `gpus` GPUs each, and what it needs. Bytes and seconds throughout.

    Attributes:
        nodes, gpus: machines, and GPUs of each.
        images, epochs, batch: images of the data set, passes over them, images of a step over all GPUs.
        gpu_seconds: of a GPU for its share of a step, without the network.
        decode_seconds: of one core to read, augment and collate an image.
        loader_cores: cores of a machine that are free to do so.
        image_bytes: of an image file.
        storage: bytes a second of image files that a machine reads.
        gradient_bytes: of all gradients.
        network: bytes a second that a machine sends to another.
        link: bytes a second that a GPU sends to another of its machine.
    """

    nodes: int
    gpus: int
    images: int
    epochs: int
    batch: int
    gpu_seconds: float
    decode_seconds: float
    loader_cores: float
    image_bytes: float
    storage: float
    gradient_bytes: float
    network: float
    link: float

    @property
    def devices(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus

    @property
    def steps(self) -> int:
        """Optimizer steps in all; the incomplete batch of an epoch is left out, as in training."""
        return self.epochs * (self.images // self.batch)

    @property
    def reduced_bytes(self) -> float:
        """What each GPU sends (and gets) in a ring all-reduce: `2 (N - 1) / N` times the gradients.

        A ring through all GPUs leaves and enters each machine once, so that this is also what a machine sends.
        """
        return 2 * (self.devices - 1) / self.devices * self.gradient_bytes

    @property
    def reduce_seconds(self) -> float:
        """Of that, at the bandwidth of the slowest link in the ring."""
        return self.reduced_bytes / (min(self.network, self.link) if self.nodes > 1 else self.link)

    @property
    def wanted_seconds(self) -> float:
        """Of a step that waits for no image. The backward pass can hide a part of the all-reduce; none is taken off."""
        return self.gpu_seconds + self.reduce_seconds

    @property
    def wanted_images(self) -> float:
        """Images a second that the loaders must give, in all, so that no GPU waits."""
        return self.batch / self.wanted_seconds

    @property
    def wanted_cores(self) -> float:
        """Cores that these images keep busy, in all."""
        return self.wanted_images * self.decode_seconds

    @property
    def wanted_workers(self) -> int:
        """Worker processes for each GPU."""
        return math.ceil(self.wanted_cores / self.devices)

    @property
    def wanted_reads(self) -> float:
        """Bytes a second of image files that these images take, in all, where nothing is cached."""
        return self.wanted_images * self.image_bytes

    @cached_property
    def limits(self) -> dict[str, float]:
        """Images a second that each part allows, in all."""
        return {
            "GPUs": self.wanted_images,
            "decoding": self.nodes * self.loader_cores / self.decode_seconds,
            "storage": self.nodes * self.storage / self.image_bytes,
        }

    @property
    def bottleneck(self) -> str:
        """The part that allows the fewest images a second; of the steps, the network if most of one waits for it."""
        slowest = min(self.limits, key=lambda part: self.limits[part])
        return "network" if slowest == "GPUs" and self.reduce_seconds > self.gpu_seconds else slowest

    @property
    def step_seconds(self) -> float:
        """Of a step, as fast as the slowest part."""
        return self.batch / min(self.limits.values())

    @property
    def hours(self) -> float:
        """Of all steps."""
        return self.steps * self.step_seconds / 3600
