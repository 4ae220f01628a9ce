"""What each variant costs: size, operations, latency, memory; and how long it will train."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch

from datasets.dataset import CocoDetection
from datasets.sizes import resized
from datasets.splits import build_dataset
from models.criterion import total_loss
from models.detector import DeformableDETR
from models.from_config import as_trained, build_criterion, build_model
from util.config import Config, DataPaths
from util.counting import count_flops
from util.devices import autocast
from util.errors import UserError
from util.measuring import is_out_of_memory, measure_peak, seconds
from util.objects import Objects
from util.options import from_dict
from util.profiling import ForwardPass
from util.progress import progress

START = 6.0  # seconds in which a process imports torch and reads annotations
PROBED = 4  # images of the step that is timed for the estimate


@dataclass
class Cost:
    """The cost of a variant.

    Attributes:
        trainable, parameters: how many parameters are trained, and how many there are.
        flops: operations of a forward pass for one image, a multiply-add counted as two.
        size: (height, width) in pixels of that image.
        step: seconds of forward and backward pass for one image in training; None if it was not timed.
        latency: median seconds of a forward pass for one image; None until measured.
        peak_bytes: most memory of tensors in it.
        failure: why there are no figures, or "".
    """

    trainable: int = 0
    parameters: int = 0
    flops: float | None = None
    size: tuple[int, int] = (0, 0)
    step: float | None = None
    latency: float | None = None
    peak_bytes: int | None = None
    failure: str = ""


@dataclass(frozen=True)
class DataSize:
    """What an estimate needs to know of the data.

    Attributes:
        classes: C.
        train_images, val_images, train_objects: how many.
        val_sizes: (height, width) of validation images as they are on the disk, as far as known.
    """

    classes: int
    train_images: int
    val_images: int
    train_objects: int
    val_sizes: Sequence[tuple[int, int]]


def data_sizes(configs: Mapping[str, Config]) -> dict[str, DataSize]:
    """What is to be known of the data of each variant; each data set is read once."""
    known: dict[str, DataSize] = {}
    found = {}
    for name, config in configs.items():
        key = repr([asdict(from_dict(DataPaths, asdict(config.data))), config.data.category_ids])
        if key not in known:
            train_set, val_set = build_dataset(config.data, "train"), build_dataset(config.data, "val")
            classes, objects = 1 + max(c.label for c in train_set.categories), sum(map(len, train_set.labels))
            known[key] = DataSize(classes, len(train_set), len(val_set), objects, image_sizes(val_set))
        found[name] = known[key]
    return found


def image_sizes(dataset: CocoDetection) -> list[tuple[int, int]]:
    """(height, width) of every image whose annotations say so."""
    return [(image.size[1], image.size[0]) for image in dataset.images if image.size]


def typical_size(sizes: Sequence[tuple[int, int]], shorter: int, longest: int) -> tuple[int, int]:
    """(height, width) of the middle one by area, resized as in evaluation.

    Args:
        sizes: (height, width); none at all counts as 4:3.
        shorter: the shorter side to resize to.
        longest: what the longer side may be at most.
    """
    height, width = sorted(sizes, key=lambda s: s[0] * s[1])[len(sizes) // 2] if sizes else (3, 4)
    return resized((height, width), shorter, longest)


def count_cost(model: DeformableDETR, size: tuple[int, int], device: torch.device) -> Cost:
    """Parameters and operations of a model for one image of `size` (height, width) in pixels."""
    call = ForwardPass(model.to(device).eval(), size, 1, "fp32", device)
    return Cost(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in model.parameters()),
        flops=sum(count_flops(model, call).values()),
        size=size,
    )


def untrained_cost(config: Config, data: DataSize, device: torch.device, timed: bool) -> Cost:
    """The cost of what a configuration builds; what makes it impossible is its `failure`.

    Args:
        config: of a run.
        data: for the classes and the image size.
        device: where.
        timed: also time a training step, which for a large model on a CPU takes most of a minute.
    """
    size = typical_size(data.val_sizes, config.data.eval_size, config.data.max_size)
    try:
        model = build_model(config.model, data.classes, config.loss, "none")
        cost = count_cost(model, size, device)
        cost.step = _step_seconds(config, model, data, device) if timed else None
    except UserError as error:
        return Cost(failure=str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Cost(failure="out of memory")
    return cost


def _step_seconds(config: Config, model: DeformableDETR, data: DataSize, device: torch.device) -> float:
    """Seconds of a training step for one image, in a small batch of noise: a rough figure, for a plan."""
    at_once = config.train.max_images_per_device
    batch = min(PROBED, config.train.batch_size, at_once if isinstance(at_once, int) else PROBED)
    sides = sorted(config.data.train_sizes)
    if not sides:
        raise UserError("data.train_sizes is empty; it needs at least one size")
    height, width = typical_size(data.val_sizes, sides[len(sides) // 2], config.data.max_size)
    objects = max(1, round(data.train_objects / max(1, data.train_images)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, height, width, generator=generator).to(device)
    padding_mask = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
    truth = [random_objects(objects, data.classes, i, generator, device) for i in range(batch)]
    criterion = build_criterion(config.loss)
    trained = as_trained(config.loss, config.model, model)[0].to(device).train()

    def step() -> None:
        with autocast(device, "fp32" if config.train.precision == "fp64" else config.train.precision):
            predictions = trained(images, padding_mask, truth)
        total_loss(criterion(predictions, truth, batch * objects)).backward()

    step()
    return min(seconds(step, device) for _ in range(4)) / batch  # what else the machine does only adds


def random_objects(
    count: int, classes: int, image_id: int, generator: torch.Generator, device: torch.device
) -> Objects:
    """An image's objects, as many as asked for, at random."""
    boxes = (0.2 + 0.3 * torch.rand(count, 4, generator=generator)).to(device)
    labels = torch.randint(classes, (count,), generator=generator).to(device)
    return Objects(boxes, labels, image_id, exhaustive=labels.unique())


def estimate(config: Config, cost: Cost, data: DataSize) -> float | None:
    """Seconds that a run will take; None if nothing was timed."""
    if cost.step is None:
        return None
    cfg = config.train
    batch = min(cfg.batch_size, data.train_images)
    images = cfg.epochs * (data.train_images // batch) * batch
    evaluations = -(-cfg.epochs // cfg.eval_every)
    # A forward pass is about a third of forward and backward.
    return START + cost.step * (images + evaluations * data.val_images / 3)


def measure_side_by_side(
    models: Mapping[str, DeformableDETR], costs: Mapping[str, Cost], device: torch.device, repeats: int
) -> None:
    """Latency and peak memory of a forward pass of one image, into `costs`; variants take turns, in random order.

    Args:
        models: to measure, by variant.
        costs: of the same; read for the image size, and filled.
        device: where.
        repeats: timed passes of each.
    """
    calls: dict[str, ForwardPass] = {}
    for name, model in models.items():
        calls[name] = call = ForwardPass(model.to(device).eval(), costs[name].size, 1, "fp32", device)
        call()
        costs[name].peak_bytes = measure_peak(call, device, call.resident)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for _ in progress(range(repeats), "latency"):
        shuffle(order)
        for name in order:
            times[name].append(seconds(calls[name], device))
    for name, found in times.items():
        costs[name].latency = median(found)
