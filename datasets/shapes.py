"""A small detection data set that needs no download: coloured shapes on textured backgrounds.

    python -m datasets.shapes --output data/shapes

Written in COCO 2017 layout, the same for the same seed. Images differ in size, shapes in size over a factor of
three (`--spread`); shapes are turned a little (`--turn`), overlap, and their boxes bound what is visible of them.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from util.console import exit_quietly
from util.errors import UserError

NAMES = ("circle", "square", "triangle")
_LEAST_VISIBLE = 0.75  # of a shape that others overlap
_SUPERSAMPLING = 3  # shapes are drawn this much larger and reduced, for smooth edges


def generate(
    output: str | Path,
    train: int = 1000,
    val: int = 150,
    size: int = 96,
    seed: int = 0,
    turn: float = 0.35,
    spread: float = 3.0,
) -> Path:
    """Write the data set, unless the same one is there already.

    Args:
        output: folder to write to.
        train, val: images of each split.
        size: mean side of the images in pixels; sides vary by a quarter.
        seed: seed of all random numbers.
        turn: most that a shape is turned, either way, in radians.
        spread: ratio of the largest shape's radius to the smallest one's, around the same mean.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something that was not generated, or shapes cannot spread so.
    """
    if not (0 <= turn <= math.pi and 1 <= spread <= 10):
        raise UserError(f"shapes: turn is {turn} and spread {spread}; they must be in [0, pi] and in [1, 10]")
    output = Path(output)
    settings = {"train": train, "val": val, "size": size, "seed": seed, "turn": turn, "spread": spread, "version": 8}
    stamp = output / "shapes.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == settings:
        return output
    if output.exists() and not stamp.is_file() and any(output.iterdir()):
        raise UserError(f"'{output}' holds something other than generated shapes; choose another folder")
    # Written beside and renamed, so that two runs that start together do not find half a data set.
    with tempfile.TemporaryDirectory(prefix=f"{output.name}-", dir=_parent(output)) as folder:
        _write(Path(folder), settings)
        shutil.rmtree(output, ignore_errors=True)
        Path(folder).chmod(0o755)
        Path(folder).rename(output)
        Path(folder).mkdir()  # for TemporaryDirectory to remove
    return output


def _parent(folder: Path) -> Path:
    folder.resolve().parent.mkdir(parents=True, exist_ok=True)
    return folder.resolve().parent


def _write(folder: Path, settings: dict) -> None:
    (folder / "annotations").mkdir()
    for stream, split in enumerate(("train", "val")):
        (folder / f"{split}2017").mkdir()
        images: list[dict] = []
        annotations: list[dict] = []
        for i in tqdm(range(settings[split]), desc=f"shapes {split}", disable=None, leave=False):
            rng = np.random.default_rng([settings["seed"], stream, i])
            picture, labels, boxes = draw_scene(rng, settings["size"], settings["turn"], settings["spread"])
            name = f"{i:06d}.png"
            picture.save(folder / f"{split}2017" / name)
            images.append({"id": i + 1, "file_name": name, "width": picture.width, "height": picture.height})
            for label, (x0, y0, x1, y1) in zip(labels, boxes):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                )
        content = {
            "info": {"description": "generated shapes", **settings},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    (folder / "shapes.json").write_text(json.dumps(settings))


def draw_scene(
    rng: np.random.Generator, size: int, turn: float = 0.35, spread: float = 3.0
) -> tuple[Image.Image, list[int], list[list[int]]]:
    """One image: the picture, class indices, and the visible boxes xyxy in pixels; arguments as of `generate`."""
    width, height = (int(v) for v in rng.integers(round(size * 0.75), round(size * 1.25) + 1, 2))
    picture = np.asarray(_background(rng, width, height), dtype=np.float32)
    owner = np.full((height, width), -1)  # which shape is on top
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(1, 5))):
        label = int(rng.integers(len(NAMES)))
        coverage = _shape(rng, label, width, height, size, turn, spread)
        covered = coverage > 0.5
        visible = [((owner == i) & ~covered).sum() / area for i, area in enumerate(areas)]
        if covered.sum() < 25 or min(visible, default=1.0) < _LEAST_VISIBLE:
            continue  # it would hide another shape, or be hardly in the picture
        colour = _colour(rng, picture[covered].mean(0))
        shade = rng.normal(0, 6, (height, width, 1))
        picture = picture * (1 - coverage[..., None]) + (colour + shade) * coverage[..., None]
        owner[covered] = len(labels)
        labels.append(label)
        areas.append(int(covered.sum()))
    boxes = []
    for i in range(len(labels)):
        rows, columns = np.nonzero(owner == i)
        boxes.append([int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1])
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)), labels, boxes


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Blotches of two scales and fine noise around a muted colour."""
    base = rng.uniform(60, 190, 3)
    picture = np.broadcast_to(base, (height, width, 3)).copy()
    for cells, strength in ((4, 14), (12, 9)):
        coarse = rng.normal(0, strength, (cells, cells, 3)).clip(-127, 127) + 128
        blotches = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(blotches, dtype=np.float64) - 128
    picture += rng.normal(0, 5, (height, width, 3))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """A colour that stands out from the background."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - background) > 120:
            return colour


def _shape(
    rng: np.random.Generator, label: int, width: int, height: int, size: int, turn: float, spread: float
) -> np.ndarray:
    """Coverage `[H, W]` in [0, 1] of one shape somewhere in the image."""
    # 12% to 36% of the side if the spread is 3; the geometric mean stays.
    radius = size * 0.12 * math.sqrt(3 / spread) * math.exp(rng.uniform(0, math.log(spread)))
    x, y = rng.uniform(radius * 0.6, width - radius * 0.6), rng.uniform(radius * 0.6, height - radius * 0.6)
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    if NAMES[label] == "circle":
        corners = [x - radius, y - radius, x + radius, y + radius]
        pen.ellipse([c * _SUPERSAMPLING for c in corners], fill=255)
    else:
        sides = 4 if NAMES[label] == "square" else 3
        upright = math.pi / sides + math.pi / 2
        first = upright + rng.uniform(-turn, turn)
        angles = [first + 2 * math.pi * k / sides for k in range(sides)]
        pen.polygon(
            [
                ((x + radius * math.cos(a)) * _SUPERSAMPLING, (y + radius * math.sin(a)) * _SUPERSAMPLING)
                for a in angles
            ],
            fill=255,
        )
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Write the data set of coloured shapes, in COCO 2017 layout.")
    parser.add_argument("--output", default="data/shapes", help="folder to write to (default: %(default)s)")
    parser.add_argument("--train", type=int, default=1000, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=150, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="mean side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument(
        "--turn", type=float, default=0.35, help="most that a shape is turned, in radians (default: %(default)s)"
    )
    parser.add_argument(
        "--spread", type=float, default=3.0, help="radius of the largest to the smallest (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    try:
        print(f"shapes are in {generate(**vars(options))}")
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    exit_quietly(_main, sys.argv[1:])
