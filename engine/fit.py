"""How many images fit into memory at once: found by trying on a GPU, by measuring one and two images on a CPU."""

import gc
import math
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from datasets.dataset import CocoDetection
from datasets.strong import images_in_one
from models.criterion import total_loss
from models.from_config import build_criterion
from util.checkpoint import RawCheckpoint
from util.config import Config, DataConfig
from util.devices import autocast
from util.distributed import World
from util.errors import UserError
from util.objects import Objects

MARGIN = 0.9  # of the free memory: allocators lose some, and later batches may have more objects


def images_at_once(
    config: Config,
    trained: nn.Module,
    dataset: CocoDetection,
    device: torch.device,
    world: World,
    most: int,
    resumed: RawCheckpoint | None,
) -> int | None:
    """`train.max_images_per_device`, found if it is `auto`; a resumed run keeps the number that it began with.

    The other arguments and errors are those of `images_that_fit`.
    """
    given = config.train.max_images_per_device
    if given != "auto":
        return given
    before = resumed.content.get("config", {}).get("train", {}).get("max_images_per_device") if resumed else None
    if isinstance(before, int):
        return before
    found = images_that_fit(config, trained, dataset, device, world, most)
    print(f"train.max_images_per_device auto: {found} of {most} images fit at once")
    return found


def images_that_fit(
    config: Config, trained: nn.Module, dataset: CocoDetection, device: torch.device, world: World, most: int
) -> int:
    """The largest number of images that every process can train on at once, in the largest size that they can have.

    Neither weights and statistics nor random states change, so a run goes on as if it had been given the number.

    Args:
        config: of the run.
        trained: what training runs, on its device, not yet wrapped for several processes.
        dataset: the training images.
        device: where.
        world: the processes, which agree on the smallest of their numbers.
        most: images that a process has to compute in a step.

    Raises:
        UserError: not even one image fits, or a device whose memory cannot be asked for.
    """
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.max_images_per_device auto is for a CPU or CUDA, not for '{device}'; give a number")
    size = largest_size(dataset, config.data)
    later = memory_of_optimizer(trained, bool(config.train.ema_decay))

    def step(images: int) -> None:
        try_step(config, trained, dataset, device, size, images)

    found = most
    if most > 1:
        buffers = [buffer.clone() for buffer in trained.buffers()]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if device.type == "cuda":
                found = largest_that_fits(lambda images: fits_gpu(step, images, device, later), most)
            else:
                limit = resident() + int(MARGIN * available() / world.local_size) - later
                found = by_memory(lambda images: peak_of(step, images), most, limit)
        with torch.no_grad():
            for buffer, before in zip(trained.buffers(), buffers):
                buffer.copy_(before)
    found = min(numbers[0] for numbers in world.exchange([found]))
    if not found:
        raise UserError(
            f"not even one image of {size[0]}x{size[1]} pixels fits into the memory of {device}; lower data.max_size "
            "or data.train_sizes, or try --train.checkpoint_activations true or --train.precision bf16"
        )
    return found


def largest_size(dataset: CocoDetection, data: DataConfig) -> tuple[int, int]:
    """(H, W) that no padded batch of training images exceeds: the largest height and the largest width of any."""
    shapes = {image.size or (1, 1) for image in dataset.images}
    square = data.max_size if any(image.size is None for image in dataset.images) else 0  # of any shape
    if data.crop:  # whatever the shape of an image, its crop may be high or wide
        low, high = data.crop_range
        shapes |= {(low, high), (high, low)}
    shorter, height, width = max(data.train_sizes), square, square
    for w, h in shapes:
        scale = min(shorter / min(w, h), data.max_size / max(w, h))
        height, width = max(height, math.ceil(h * scale)), max(width, math.ceil(w * scale))
    return height, width


def memory_of_optimizer(trained: nn.Module, ema: bool) -> int:
    """Bytes that come on top of a first step: gradients that are kept, two moments, the average of the weights."""
    learnt = sum(p.numel() * p.element_size() for p in trained.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in trained.parameters())
    return 3 * learnt + (weights if ema else 0)


def try_step(
    config: Config,
    trained: nn.Module,
    dataset: CocoDetection,
    device: torch.device,
    size: tuple[int, int],
    images: int,
) -> None:
    """Forward and backward of one micro-batch of noise, with as many objects as any image can have."""
    weight = next(trained.parameters())
    count = max(1, max(map(len, dataset.labels))) * images_in_one(config.data)
    boxes = torch.full((count, 4), 0.5, device=device)
    labels = torch.full((count,), dataset.categories[0].label, device=device)
    objects = [Objects(boxes, labels, 0, exhaustive=labels.unique()) for _ in range(images)]
    pixels = torch.randn(images, 3, *size, device=device, dtype=weight.dtype)
    mask = torch.zeros(images, *size, dtype=torch.bool, device=device)
    trained.train()
    try:
        with autocast(device, config.train.precision):
            predictions = trained(pixels, mask, objects)
        total_loss(build_criterion(config.loss)(predictions, objects, count * images)).backward()
    finally:
        trained.zero_grad(set_to_none=True)


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 if none does: doubled until one does not, then halved in between."""
    good, bad = 0, most + 1
    while good < most and bad > most:
        tried = min(max(1, 2 * good), most)
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fits_gpu(step: Callable[[int], None], images: int, device: torch.device, later: int) -> bool:
    """Whether a step leaves a margin of a GPU's memory, besides `later` bytes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    limit = MARGIN * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) - later
    try:
        step(images)
        return torch.cuda.max_memory_reserved(device) <= limit
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()  # what the failed step left in reference cycles
        torch.cuda.empty_cache()


def by_memory(peak: Callable[[int], int], most: int, limit: int) -> int:
    """Images whose peak stays below `limit`, at least 1, from the peaks of one and two images, in bytes.

    One image is tried in any case: a machine that cannot take it would not train at all.
    """
    one, two = peak(1), peak(2)
    each = max(two - one, 1)
    return max(1, min(most, 1 + (limit - one) // each))


def peak_of(step: Callable[[int], None], images: int) -> int:
    """The largest memory of this process while it makes a step, in bytes."""
    with suppress(OSError):  # where it may not be reset, the peak since the start is at least no less
        Path("/proc/self/clear_refs").write_text("5")
    step(images)
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def resident() -> int:
    """Bytes of memory that this process has now."""
    return _status("VmRSS")


def available() -> int:
    """Bytes of memory that are free: of the machine, and of this process's control group if that allows less."""
    free = _field(Path("/proc/meminfo"), "MemAvailable")
    if not free:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # unknown; half of all
    with suppress(OSError, ValueError):  # no such limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return max(free, 0)


def _status(name: str) -> int:
    return _field(Path("/proc/self/status"), name)


def _field(file: Path, name: str) -> int:
    """A field of one of Linux's tables, in bytes; 0 where there is none."""
    with suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
