"""Shows where the backbones of several detectors look from the same unit: regular and deformable ones side by side.

    python scripts/compare_backbones.py --checkpoint regular=runs/r/best.pth v1=runs/v1/best.pth v2=runs/v2/best.pth \\
        --input photo.jpg --box 120,40,360,300 --output backbones.png

A unit is one token of a feature map. It reads the picture through the 3x3 convolutions of its ResNet. Each location
that it reads has a strength: how fast the unit would change if this one sample moved (|d response / d location|, per
pixel of the network's input image; arXiv 1811.11168, section 2). The figure has a row for each checkpoint and box, and
a column for each stage. The table gives the share of the strength in the box, which should be large for deformable
backbones, and how far from the unit the strength lies: the radii that hold 50% and 90% of it, in pixels of the picture.

Boxes and pixels are given in pixels of the upright picture. Without --pixel the unit is at the centre of the box;
without --box no shares are shown. Several boxes, such as a small and a large object, each have their own rows.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from analysis.looks.backbone_pictures import BackboneRow, backbone_picture
from analysis.looks.canvas import save
from analysis.looks.conv_sampling import conv_sampling
from analysis.looks.selection import choose_pixel
from datasets.images import read_image
from main import load_predictor
from util.console import exit_quietly
from util.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="LABEL=PATH", help="detectors to compare; each has a row"
    )
    parser.add_argument("--input", required=True, metavar="PICTURE", help="picture to look at")
    parser.add_argument("--pixel", metavar="X,Y", help="place of the unit (default: the centre of the box)")
    parser.add_argument(
        "--box", nargs="+", default=[], metavar="X0,Y0,X1,Y1", help="objects, whose share of the strength is shown"
    )
    parser.add_argument(
        "--level", type=int, default=-1, help="feature level of the unit, from 0, fine to coarse (default: the last)"
    )
    parser.add_argument("--points", type=int, default=500, help="largest number of locations in a panel (default: 500)")
    parser.add_argument("--size", type=int, help="shorter side to resize to (default: the checkpoint's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--output", default="backbones.png", metavar="FILE", help="default: backbones.png")
    options = parser.parse_args(argv)
    try:
        compare(options)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def compare(options: argparse.Namespace) -> None:
    """Draw and print every unit of every backbone, with the options of the command line."""
    checkpoints = [labelled(text) for text in options.checkpoint]
    if options.points < 1:
        raise UserError(f"--points is {options.points}; give 1 or more")
    output = Path(options.output)
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise UserError(f"--output is '{output}'; give a .png file in a folder that exists")
    picture = read_image(options.input)
    width, height = picture.size
    units = units_of(options.pixel, options.box, picture.size)
    rows: list[list[BackboneRow]] = [[] for _ in units]
    for label, path in checkpoints:
        predictor = load_predictor(path, options.device, options.size)
        images = predictor.batch_of([picture]).images
        for found, (point, box, name) in zip(rows, units):
            try:
                locations = conv_sampling(predictor.model.backbone, images, point, options.level)
            except UserError as error:
                raise UserError(f"{label}: {error}") from None
            found.append(BackboneRow("\n".join(filter(None, [label, name])), locations, box))
    flat = [row for group in rows for row in group]
    try:
        save(backbone_picture(picture, flat, options.points), output)
    except OSError as error:
        raise UserError(f"--output: cannot write '{output}': {error.strerror}") from None
    for (_, box, name), group in zip(units, rows):
        where = f", {box[2] * box[3]:.0%} of the picture" if box else ""
        print(f"\n{name or 'the unit'}{where}; radii in pixels of the picture, {width} x {height}\n")
        print(
            "| backbone | stage | locations | inside the box | median radius | 90% radius |\n|---|---|---|---|---|---|"
        )
        for row in group:
            print(*table_of(row, picture.size), sep="\n")
    print(f"\nthe figure is in {output}")


def labelled(text: str) -> tuple[str, str]:
    """Split `LABEL=PATH`.

    Raises:
        UserError: the text has another form.
    """
    label, _, path = text.partition("=")
    if not label or not path:
        raise UserError(f"--checkpoint '{text}' must be LABEL=PATH, like regular=runs/regular/best.pth")
    return label, path


def units_of(
    pixel: str | None, boxes: Sequence[str], size: tuple[int, int]
) -> list[tuple[tuple[float, float], tuple[float, ...] | None, str]]:
    """The point and the box of each unit, in [0, 1] of the picture, and a name if there are several units.

    Args:
        pixel: `X,Y`, the place of the unit; None takes the centre of the box.
        boxes: `X0,Y0,X1,Y1` for each unit.
        size: (width, height) of the picture.

    Raises:
        UserError: pixel and boxes are both missing, a text does not hold numbers, or a place is outside of the picture.
    """
    if pixel is None and not boxes:
        raise UserError("give --box X0,Y0,X1,Y1 for the object to look at, or --pixel X,Y for the unit")
    if pixel is not None and len(boxes) > 1:
        raise UserError("--pixel goes with one --box at most; of several boxes, each has its unit at the centre")
    point = None if pixel is None else [int(v) for v in numbers("--pixel", pixel, 2)]
    if not boxes:
        return [(choose_pixel(point, torch.full((4,), 0.5), size), None, "")]
    units: list[tuple[tuple[float, float], tuple[float, ...] | None, str]] = []
    for text in boxes:
        box = within(text, numbers("--box", text, 4), size)
        name = f"box {text}" if len(boxes) > 1 else ""
        units.append((choose_pixel(point, torch.tensor(box), size), box, name))
    return units


def within(text: str, corners: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box xyxy in pixels as cxcywh in [0, 1] of a picture of (width, height).

    Raises:
        UserError: the box is empty or reaches beyond the picture.
    """
    (x0, y0, x1, y1), (width, height) = corners, size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(f"--box {text} must be X0,Y0,X1,Y1 within the picture, which is {width} wide and {height} high")
    return (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height


def numbers(option: str, text: str, count: int) -> list[float]:
    """Read `count` numbers with commas between them.

    Raises:
        UserError: the text has another form.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise UserError(f"{option} is '{text}'; give {count} numbers with commas between them, without spaces")
    return found


def table_of(row: BackboneRow, size: tuple[int, int]) -> list[str]:
    """The table's lines for a backbone: one for each stage, and one for all of them."""
    lines, label = [], row.label.split("\n")[0]
    for stage in [*row.locations.stages.unique().tolist(), "all"]:
        here = row.locations if stage == "all" else row.locations.of_stage(stage)
        inside = "" if row.box is None else f"{here.share_inside(row.box):.0%}"
        radii = " | ".join(f"{here.radius(share, size):.1f}" for share in (0.5, 0.9))
        lines.append(f"| {label} | {stage} | {len(here.strength):,} | {inside} | {radii} |")
    return lines


if __name__ == "__main__":
    exit_quietly(main, sys.argv[1:])
