"""The pictures on which the benchmark of the training step trains."""

import json
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from datasets.batch import Batch, collate
from datasets.dataset import CocoDetection
from datasets.loader import train_loader
from datasets.splits import build_dataset
from datasets.transforms import eval_transform
from scripts.bench.timing import seconds
from util.config import Config

CLASSES, OBJECTS = 91, 7


def make_pictures(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write `count` JPEGs of blurred noise, (height, width) `size`, with `OBJECTS` boxes each, in COCO 2017 layout."""
    rng, (height, width) = np.random.default_rng(0), size
    annotations: list[dict] = []
    (folder / "annotations").mkdir()
    (folder / "train2017").mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "train2017" / f"{i}.jpg", quality=90)
        for extent, place in zip(rng.uniform(0.05, 0.5, (OBJECTS, 2)), rng.uniform(0, 1, (OBJECTS, 2))):
            box = np.concatenate([place * (1 - extent), extent]) * [width, height, width, height]
            ids = {"id": len(annotations), "image_id": i, "category_id": int(rng.integers(CLASSES))}
            annotations.append({**ids, "bbox": box.tolist()})
    images = [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(count)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(CLASSES)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def make_data(config: Config, size: tuple[int, int], batch: int, repeats: int) -> tuple[Batch, float]:
    """A batch of exactly this size, and the ms in which one process loads a batch with the preset's augmentation."""
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), size, batch)
        config.data.root, taken = folder, []
        dataset = build_dataset(config.data, "train", epochs=config.train.epochs)
        with closing(train_loader(dataset, batch, None, workers=0, seed=0, pin_memory=False)) as loader:
            for epoch in range(repeats + 1):
                loader.batches.set_epoch(epoch)
                taken.append(1e3 * seconds(lambda: next(iter(loader)), torch.device("cpu")))
        plain = CocoDetection.from_annotations(
            dataset.image_folder, dataset.annotations, eval_transform(min(size), max(size))
        )
        return collate([plain[i] for i in range(batch)]), median(taken[1:])
