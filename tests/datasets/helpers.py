"""Small COCO-format data sets on disk, and painted pictures whose objects can be found again."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from datasets.transforms import View, target_on, to_image

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


def add_lists(file: Path) -> None:
    """Give the images of a COCO file LVIS's lists: most of the other classes are not there, some have more objects."""
    content = json.loads(file.read_text())
    ids = [category["id"] for category in content["categories"]]
    for i, image in enumerate(content["images"]):
        there = sorted({a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]})
        image["neg_category_ids"] = [k for j, k in enumerate(ids) if k not in there and (i + j) % 4]
        image["not_exhaustive_category_ids"] = there[: i % 2]
    file.write_text(json.dumps(content))


# Told apart at half strength on black and on white.
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]


def painted(width: int, height: int, boxes: list, labels: list[int]) -> View:
    """A black picture with filled rectangles in the colours of their labels, and those as its objects."""
    canvas = Image.new("RGB", (width, height))
    for (left, top, right, bottom), label in zip(boxes, labels):
        ImageDraw.Draw(canvas).rectangle([left, top, right - 1, bottom - 1], fill=COLOURS[label])
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return to_image(canvas), target_on((height, width), corners, torch.tensor(labels, dtype=torch.int64))


def of_colour(image: torch.Tensor, label: int) -> torch.Tensor:
    """`[H, W]`, the pixels of a label's colour, with those that are half of it."""
    return ((image.int() - torch.tensor(COLOURS[label]).view(3, 1, 1)).abs() < 128).all(0)


def extent(pixels: torch.Tensor) -> list[float]:
    """The box, xyxy, around pixels `[H, W]` that are True."""
    rows, columns = torch.nonzero(pixels, as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
