"""`--plan nodes=8,gpus=8`: its keys, read and checked. Nothing here imports torch."""

import difflib
import math
from dataclasses import dataclass, replace

from engine.plan.figures import (
    COCO,
    CORES_PER_GPU,
    EPOCHS,
    GPU_IMAGES,
    GPU_IMAGES_PER_SECOND,
    LINK_GBIT,
    NETWORK_GBIT,
    OBJECTS365,
    RECIPE_BATCH,
    STORAGE_MB,
    TRAINING_CORES,
    DataSet,
    Figure,
    data_set_of,
)
from util.errors import UserError

# Keys, and whether they are whole numbers; all are above zero.
KEYS = {
    "nodes": True,
    "gpus": True,
    "images": True,
    "objects": True,
    "image_kb": False,
    "epochs": True,
    "batch": True,
    "step_ms": False,
    "images_per_second": False,
    "decode_ms": False,
    "cores": True,
    "network": False,
    "link": False,
    "storage": False,
}


@dataclass(frozen=True)
class PlanRequest:
    """A cluster, a training, and what was given or is assumed about them.

    Attributes:
        nodes, gpus: machines, and GPUs of each.
        data: the data sets to plan for.
        epochs: passes over the images.
        batch: images of a step, over all GPUs.
        gpu_seconds: of a GPU for its share of a step, without the network.
        decode_seconds: of one core to read, augment and collate an image; None if it is to be measured.
        cores: processor cores of a machine.
        network: bytes a second that a machine sends to another.
        link: bytes a second that a GPU sends to another of its machine.
        storage: bytes a second of image files that a machine reads.
    """

    nodes: int
    gpus: int
    data: tuple[DataSet, ...]
    epochs: Figure
    batch: Figure
    gpu_seconds: Figure
    decode_seconds: Figure | None
    cores: Figure
    network: Figure
    link: Figure
    storage: Figure


def read_request(text: str, precision: str, is_base: bool) -> PlanRequest:
    """The request that a text such as `nodes=8,gpus=8,batch=512` makes.

    Args:
        text: `key=number` pairs between commas.
        precision: of training; a GPU was measured in fp32, bf16 and fp16.
        is_base: whether the model is that of configs/base.yaml, which was measured.

    Raises:
        UserError: a key or number that cannot be used, or keys that do not fit each other.
    """
    given = _pairs(text)
    if "gpus" not in given:
        raise UserError("--plan has no 'gpus'; give GPUs of a machine, and machines, as in --plan nodes=8,gpus=8")
    nodes, gpus = int(given.get("nodes", 1)), int(given["gpus"])
    batch = _batch(given, nodes * gpus)
    data = _data(given)
    if batch.value > (fewest := min(d.images.value for d in data)):
        raise UserError(f"--plan has {fewest:.0f} images, which make no batch of {batch.value:g}; give a smaller batch")
    cores = _figure(given, "cores", replace(CORES_PER_GPU, value=gpus * CORES_PER_GPU.value))
    if cores.value <= gpus * TRAINING_CORES.value:
        raise UserError(
            f"--plan has cores={cores.value:.0f} for gpus={gpus}: each training process takes one, and none is left "
            f"to decode images; give at least cores={gpus + 1}"
        )
    return PlanRequest(
        nodes=nodes,
        gpus=gpus,
        data=data,
        epochs=_figure(given, "epochs", EPOCHS),
        batch=batch,
        gpu_seconds=_gpu_seconds(given, math.ceil(batch.value / (nodes * gpus)), precision, is_base),
        decode_seconds=Figure(given["decode_ms"] / 1e3, "given") if "decode_ms" in given else None,
        cores=cores,
        network=_scaled(_figure(given, "network", NETWORK_GBIT), 1e9 / 8),
        link=_scaled(_figure(given, "link", LINK_GBIT), 1e9 / 8),
        storage=_scaled(_figure(given, "storage", STORAGE_MB), 1e6),
    )


def _pairs(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UserError(f"--plan has '{pair}'; it takes key=number pairs, as in --plan nodes=8,gpus=8")
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(KEYS)}"
            raise UserError(f"--plan has an unknown key '{key}'; {hint}")
        if key in found:
            raise UserError(f"--plan has '{key}' twice; give it once")
        found[key] = _number(key, value)
    return found


def _number(key: str, text: str) -> float:
    kind = "a whole number, at least 1" if KEYS[key] else "a number above 0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0) or (KEYS[key] and not value.is_integer()):
        raise UserError(f"--plan has {key}={text}; it must be {kind}")
    return value


def _figure(given: dict[str, float], key: str, default: Figure) -> Figure:
    return Figure(given[key], "given") if key in given else default


def _scaled(figure: Figure, factor: float) -> Figure:
    return replace(figure, value=figure.value * factor)


def _batch(given: dict[str, float], devices: int) -> Figure:
    if "batch" not in given:
        if devices * GPU_IMAGES <= RECIPE_BATCH:
            return Figure(RECIPE_BATCH, "assumed", "the paper's")
        return Figure(
            devices * GPU_IMAGES,
            "assumed",
            f"{GPU_IMAGES} images a GPU, as its step was measured; the recipe is for {RECIPE_BATCH} in all, and a "
            "larger batch needs other learning rates",
        )
    if given["batch"] < devices:
        raise UserError(
            f"--plan has batch={given['batch']:g}, which {devices} GPUs cannot share; give each an image at least"
        )
    return Figure(given["batch"], "given")


def _gpu_seconds(given: dict[str, float], share: int, precision: str, is_base: bool) -> Figure:
    if "step_ms" in given and "images_per_second" in given:
        raise UserError("--plan has step_ms and images_per_second, which say the same; give one of them")
    if "step_ms" in given:
        return Figure(given["step_ms"] / 1e3, "given", f"step_ms, for the {share} images of a GPU")
    if "images_per_second" in given:
        speed = given["images_per_second"]
        return Figure(share / speed, "given", f"{speed:g} images/s of a GPU")
    if precision not in GPU_IMAGES_PER_SECOND:
        raise UserError(f"no GPU was measured in {precision}; give step_ms or images_per_second in --plan")
    speed = GPU_IMAGES_PER_SECOND[precision]
    note = (
        f"{speed} images/s of one H200 in {precision}, configs/base.yaml, {GPU_IMAGES} images of 800x1066 "
        "(docs/benchmarks.md)"
    )
    doubts = [] if is_base else ["this model may differ: give step_ms"]
    if share < GPU_IMAGES:
        doubts.append(f"fewer at once ({share}) are slower")
    return Figure(share / speed, "assumed" if doubts else "measured", "; ".join([note, *doubts]))


def _data(given: dict[str, float]) -> tuple[DataSet, ...]:
    if "images" in given:
        return (data_set_of(given["images"], given.get("objects"), given.get("image_kb")),)
    if "objects" in given:
        raise UserError("--plan has objects without images; give both, as in --plan gpus=1,images=5000,objects=40000")
    if "image_kb" not in given:
        return COCO, OBJECTS365
    size = Figure(given["image_kb"] * 1e3, "given")
    return replace(COCO, image_bytes=size), replace(OBJECTS365, image_bytes=size)
