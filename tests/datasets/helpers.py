"""Small COCO-format data sets on disk."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_json(path: Path, content: object) -> Path:
    """JSON in a file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def annotation(number: int, image: int, category: int, bbox: list, **more) -> dict:
    """A COCO annotation without `area` and `iscrowd` unless given."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def write_coco(
    folder: Path,
    annotations: list[dict],
    sizes: tuple[tuple[int, int], ...] = ((40, 30), (30, 40), (36, 36)),
    categories: list[dict] | None = None,
    split: str = "train",
) -> tuple[Path, Path]:
    """A split in COCO 2017 layout: images 1.png, 2.png, ... with ids 1, 2, ... of these (width, height).

    Returns:
        Image folder and annotation file.
    """
    images = folder / f"{split}2017"
    images.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, (width, height) in enumerate(sizes, start=1):
        picture(width, height, i).save(images / f"{i}.png")
        entries.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": SHAPES if categories is None else categories,
    }
    return images, write_json(folder / "annotations" / f"instances_{split}2017.json", content)
