"""What a plan measures on this machine: the loader's cost of an image, the model's gradients, its checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
from PIL import Image

from datasets.loader import train_loader
from datasets.splits import build_dataset
from engine.plan.figures import Figure
from engine.plan.request import PlanRequest
from engine.predict import load_model
from models.from_config import build_model
from util.command_config import ProfileConfig
from util.config import DataConfig

WIDTH, HEIGHT, OBJECTS = 640, 480, 7  # objects as in COCO, where an image has 7.3
PICTURES, BATCH, EPOCHS = 8, 8, 6  # read once to warm up, then so many times


@dataclass(frozen=True)
class Measured:
    """What was found here.

    Attributes:
        decode_seconds: of one core to read, augment and collate an image.
        trainable: parameters with a gradient.
        gradient_bytes: of their gradients.
        checkpoint_bytes: of a checkpoint: weights, and the two moments of AdamW.
        ema_bytes: what a moving average of the weights would add.
    """

    decode_seconds: Figure
    trainable: int
    gradient_bytes: Figure
    checkpoint_bytes: Figure
    ema_bytes: float


def measure_here(options: ProfileConfig, request: PlanRequest) -> Measured:
    """Build the model and, unless `decode_ms` is given, time the loader.

    Raises:
        UserError: no such checkpoint.
    """
    if options.checkpoint:
        model = load_model(options.checkpoint)[0]
    else:
        model = build_model(options.model, options.num_classes, backbone_weights="none")
    size = 8 if options.precision == "fp64" else 4  # autocast leaves weights and gradients in fp32
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(tensor.numel() for tensor in model.state_dict().values())
    return Measured(
        request.decode_seconds or measure_decoding(),
        trainable,
        Figure(trainable * size, "counted", f"{trainable:,} trainable parameters, {size} bytes each"),
        Figure((weights + 2 * trainable) * size, "counted", "weights and the two moments of AdamW"),
        weights * size,
    )


def measure_decoding(epochs: int = EPOCHS) -> Figure:
    """Processor seconds of an image in the training loader: read, decoded, augmented as in the paper, padded."""
    threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        stored = write_pictures(Path(folder))
        data = DataConfig(train_images=folder, train_annotations=f"{folder}/train.json")
        loader = train_loader(build_dataset(data, "train"), BATCH, None, workers=0, seed=0, pin_memory=False)
        torch.set_num_threads(1)  # as in a worker
        try:
            list(loader)
            began = process_time()
            for epoch in range(epochs):
                loader.batches.set_epoch(epoch)
                list(loader)
            seconds = process_time() - began
        finally:
            torch.set_num_threads(threads)
    images = epochs * PICTURES
    note = (
        f"here, on one core; {images} made-up JPEG pictures of {WIDTH}x{HEIGHT} and {stored / 1e3:.0f} KB, cached, "
        f"with the recipe's augmentation, padded in batches of {BATCH}"
    )
    return Figure(seconds / images, "measured", note)


def write_pictures(folder: Path) -> float:
    """`PICTURES` JPEG files of about the bytes of COCO's, and train.json beside them.

    Returns:
        Bytes of a file, the mean.
    """
    random = np.random.default_rng(0)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for i in range(PICTURES):
        name = f"{i}.jpg"
        # Natural pictures have a spectrum near 1/f; with this slope and quality a file is as large as one of COCO's.
        _noise(random, 1.2).save(folder / name, quality=90)
        images.append({"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for box in random.integers(8, 300, (OBJECTS, 4)).tolist():
            annotations.append({"id": len(annotations), "image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "train.json").write_text(json.dumps(content))
    return sum(file.stat().st_size for file in folder.glob("*.jpg")) / PICTURES


def _noise(random: np.random.Generator, slope: float) -> Image.Image:
    """An RGB picture of noise whose amplitude falls with the frequency to this power; its channels are alike."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1

    def plane() -> np.ndarray:
        spectrum = np.fft.rfft2(random.standard_normal((HEIGHT, WIDTH))) / frequency**slope
        values = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
        return values / values.std()

    grey = plane()
    channels = np.stack([grey + 0.4 * plane() for _ in range(3)], -1)
    return Image.fromarray((127 + 55 * channels).clip(0, 255).astype(np.uint8))
