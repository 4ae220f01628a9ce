"""A small detection data set that needs no download: coloured shapes on textured backgrounds.

    python -m datasets.shapes --output data/shapes

Written in COCO 2017 layout, the same for the same seed. Images differ in size, shapes in size over a factor of
five; shapes are rotated, overlap, and their boxes bound what is visible of them.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

NAMES = ("circle", "square", "triangle")
_SUPERSAMPLING = 3  # shapes are drawn this much larger and reduced, for smooth edges


def generate(output: str | Path, train: int = 800, val: int = 150, size: int = 96, seed: int = 0) -> Path:
    """Write the data set, unless the same one is there already.

    Args:
        output: folder to write to.
        train, val: images of each split.
        size: mean side of the images in pixels; sides vary by a quarter.
        seed: of everything random.

    Returns:
        The folder.
    """
    output = Path(output)
    settings = {"train": train, "val": val, "size": size, "seed": seed, "version": 1}
    stamp = output / "shapes.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == settings:
        return output
    stamp.unlink(missing_ok=True)
    (output / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count, stream in (("train", train, 0), ("val", val, 1)):
        folder = output / f"{split}2017"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        images, annotations = [], []
        for i in tqdm(range(count), desc=f"shapes {split}", disable=None, leave=False):
            picture, labels, boxes = draw_scene(np.random.default_rng([seed, stream, i]), size)
            name = f"{i:06d}.png"
            picture.save(folder / name)
            images.append({"id": i + 1, "file_name": name, "width": picture.width, "height": picture.height})
            for label, (x0, y0, x1, y1) in zip(labels, boxes):
                box = [x0, y0, x1 - x0, y1 - y0]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
        content = {
            "info": {"description": "generated shapes", **settings},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
        }
        (output / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    stamp.write_text(json.dumps(settings))
    return output


def draw_scene(rng: np.random.Generator, size: int) -> tuple[Image.Image, list[int], list[list[int]]]:
    """One image: the picture, class indices, and the visible boxes xyxy in pixels."""
    width, height = (int(v) for v in rng.integers(round(size * 0.75), round(size * 1.25) + 1, 2))
    picture = np.asarray(_background(rng, width, height), dtype=np.float32)
    owner = np.full((height, width), -1)  # which shape is on top
    labels, areas = [], []
    for i in range(int(rng.integers(1, 7))):
        label = int(rng.integers(len(NAMES)))
        coverage = _shape(rng, label, width, height, size)
        colour = _colour(rng, picture.mean((0, 1)))
        shade = rng.normal(0, 6, (height, width, 1))
        picture = picture * (1 - coverage[..., None]) + (colour + shade) * coverage[..., None]
        owner[coverage > 0.5] = i
        labels.append(label)
        areas.append(int((coverage > 0.5).sum()))
    kept, boxes = [], []
    for i, (label, area) in enumerate(zip(labels, areas)):
        rows, columns = np.nonzero(owner == i)
        if len(rows) < max(12, 0.35 * area):  # mostly hidden: not asked for
            continue
        kept.append(label)
        boxes.append([int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1])
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)), kept, boxes


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Blotches of two scales and fine noise around a muted colour."""
    base = rng.uniform(60, 190, 3)
    picture = np.broadcast_to(base, (height, width, 3)).copy()
    for cells, strength in ((4, 28), (12, 16)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).clip(-127, 127) + 128
        blotches = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(blotches, dtype=np.float64) - 128
    picture += rng.normal(0, 5, (height, width, 3))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """A colour that stands out from the background."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - background) > 90:
            return colour


def _shape(rng: np.random.Generator, label: int, width: int, height: int, size: int) -> np.ndarray:
    """Coverage `[H, W]` in [0, 1] of one shape somewhere in the image."""
    radius = size * 0.07 * math.exp(rng.uniform(0, math.log(5)))  # 7% to 35% of the side
    x, y = rng.uniform(radius * 0.6, width - radius * 0.6), rng.uniform(radius * 0.6, height - radius * 0.6)
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    if NAMES[label] == "circle":
        corners = [x - radius, y - radius, x + radius, y + radius]
        pen.ellipse([c * _SUPERSAMPLING for c in corners], fill=255)
    else:
        sides = 4 if NAMES[label] == "square" else 3
        turn = rng.uniform(0, 2 * math.pi)
        angles = [turn + 2 * math.pi * k / sides for k in range(sides)]
        pen.polygon(
            [
                ((x + radius * math.cos(a)) * _SUPERSAMPLING, (y + radius * math.sin(a)) * _SUPERSAMPLING)
                for a in angles
            ],
            fill=255,
        )
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


def _main() -> None:
    parser = argparse.ArgumentParser(description="Write the data set of coloured shapes, in COCO 2017 layout.")
    parser.add_argument("--output", default="data/shapes", help="folder to write to (default: %(default)s)")
    parser.add_argument("--train", type=int, default=800, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=150, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="mean side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    options = parser.parse_args()
    print(f"shapes are in {generate(**vars(options))}")


if __name__ == "__main__":
    _main()
