"""Figures that a plan takes from elsewhere: measured on other machines, published, or assumed.

A `Figure` says where it is from, so that no number in a plan is a silent guess.
"""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Figure:
    """A number and where it is from.

    Attributes:
        value: in the unit that the name of the variable says.
        source: `measured`, `counted`, `published`, `given` or `assumed`.
        note: where, of what, and why.
    """

    value: float
    source: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.source}: {self.note}" if self.note else self.source


@dataclass(frozen=True)
class DataSet:
    """Training images and what is known of them.

    Attributes:
        name: heading.
        images: number of images.
        objects: number of objects of all images.
        image_bytes: mean size of an image file.
        kept_bytes, peak_bytes: memory of the annotations in one process, after and while they are read.
        read_seconds: processor time to read the annotations, in each process.
    """

    name: str
    images: Figure
    objects: Figure
    image_bytes: Figure
    kept_bytes: Figure
    peak_bytes: Figure
    read_seconds: Figure


# Training of configs/base.yaml, 8 images of 800x1066 on one H200: images a second (docs/benchmarks.md, "On a GPU").
GPU_IMAGES = 8
GPU_IMAGES_PER_SECOND = {"fp32": 37.3, "bf16": 50.6, "fp16": 48.1}

# Reading annotations (docs/scaling.md): bytes of an object, and seconds of a processor.
COCO_OBJECTS, KEPT, PEAK, SECONDS = 860_001, 100 * MIB / 860_001, 660 * MIB / 860_001, 3.7 / 860_001
READING = "docs/scaling.md"

COCO = DataSet(
    "COCO",
    Figure(118_287, "published", "train2017"),
    Figure(COCO_OBJECTS, "published", "train2017"),
    Figure(163e3, "published", "train2017.zip, 18 GiB, over its images"),
    Figure(COCO_OBJECTS * KEPT, "measured", f"{READING}, a file of as many objects"),
    Figure(COCO_OBJECTS * PEAK, "measured", f"{READING}, a file of as many objects"),
    Figure(COCO_OBJECTS * SECONDS, "measured", f"{READING}, seconds of the processor"),
)
EIGHTH = f"{READING}, eight times an eighth of it"
OBJECTS365 = DataSet(
    "Objects365",
    Figure(1_742_289, "published", "version 2, train"),
    Figure(8 * 3_100_000, "assumed", "eight times the made-up eighth of docs/scaling.md"),
    Figure(200e3, "assumed", "about 370 GB over 1.8 M images"),
    Figure(8 * 440 * MIB, "measured", EIGHTH),
    Figure(8 * 1207 * MIB, "measured", EIGHTH),
    Figure(8 * 11.3, "measured", f"{EIGHTH}, seconds of the processor"),
)

RECIPE_BATCH = 32
EPOCHS = Figure(50, "assumed", "the paper's")
CORES_PER_GPU = Figure(12, "assumed", "what rented machines of 8 H100 have (96 cores)")
TRAINING_CORES = Figure(1, "assumed", "each training process keeps one core busy, which decodes nothing")
NETWORK_GBIT = Figure(100, "assumed", "one network card of 100 Gbit/s a machine")
LINK_GBIT = Figure(3600, "assumed", "NVLink of an H100 or H200, one direction, as the vendor gives it")
STORAGE_MB = Figure(2000, "assumed", "a local NVMe disk that reads small files in any order")


def data_set_of(images: float, objects: float | None, image_kb: float | None) -> DataSet:
    """A user's own data set; what is not given is as in COCO."""
    count = (
        Figure(objects, "given")
        if objects is not None
        else Figure(round(images * COCO_OBJECTS / COCO.images.value), "assumed", "as many an image as in COCO")
    )
    size = Figure(image_kb * 1e3, "given") if image_kb else Figure(COCO.image_bytes.value, "assumed", "as in COCO")
    by_object = f"{READING}, by object, as for COCO"
    return DataSet(
        f"{int(images):,} images",
        Figure(images, "given"),
        count,
        size,
        Figure(count.value * KEPT, "measured", by_object),
        Figure(count.value * PEAK, "measured", by_object),
        Figure(count.value * SECONDS, "measured", f"{by_object}, seconds of the processor"),
    )
