"""CrowdHuman's annotation files (arXiv 1805.00123): `.odgt`, a JSON object on each line, one for each image.

An image has boxes of persons and masks. A person has a full box (`fbox`, which may reach beyond the image), a visible
one and one of the head. The full box is an object of the class person here, the head's box one of the class head. A
mask is a region in which nobody was annotated one by one, or of a statue or a reflection. It is left out of both
classes, and so is a box that the file says to ignore.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.annotations import Annotations, ImageEntry
from datasets.rows import Row, annotations_of, four_numbers
from datasets.values import as_flag
from util.errors import UserError

NAMES = ("person", "head")
PERSON, HEAD = 1, 2


def read_crowdhuman(path: Path) -> Annotations:
    """What an `.odgt` file says. The file of an image is `ID.jpg`.

    Raises:
        UserError: no such file, or a line that is no entry of an image; names the line.
    """
    if not path.is_file():
        raise UserError(f"no annotation file '{path}'")
    images: dict[str, ImageEntry] = {}
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"annotation file '{path}' is not UTF-8 text (byte {error.start}); is it an .odgt file?"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of '{path}'"
        entry = _entry(line, where)
        image = entry["ID"]
        if image in images:
            raise UserError(f"{where} is of the image {image}, which an earlier line is of, too; leave out one of them")
        images[image] = ImageEntry(image, f"{image}.jpg")
        for i, box in enumerate(entry["gtboxes"]):
            rows += _rows(image, box, f"box {i} of {where}")
    return annotations_of(path, NAMES, list(images.values()), rows)


def _entry(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if isinstance(entry, dict) and isinstance(entry.get("ID"), str) and isinstance(entry.get("gtboxes"), list):
        return entry
    raise UserError(f'{where} is no image of CrowdHuman\'s; each line must be {{"ID": text, "gtboxes": [...]}}')


def _rows(image: str, box: Any, where: str) -> Iterator[Row]:
    """A person, and the head if there is a box of it; or a mask."""
    if not isinstance(box, dict) or "tag" not in box or "fbox" not in box:
        raise UserError(f"{where} must have a 'tag' and an 'fbox'")
    ignored = _ignored(box, "extra")
    if box["tag"] != "person":
        yield Row(image, _numbers(box, "fbox", where), None, True)
        return
    yield Row(image, _numbers(box, "fbox", where), PERSON, ignored)
    if "hbox" in box:
        yield Row(image, _numbers(box, "hbox", where), HEAD, ignored or _ignored(box, "head_attr"))


def _numbers(box: dict, key: str, where: str) -> list[float]:
    numbers = four_numbers(box[key]) if isinstance(box[key], list) else None
    if numbers is None:
        raise UserError(f"{where} has the {key} {box[key]}; it must be four numbers [x, y, width, height]")
    return numbers


def _ignored(box: dict, key: str) -> bool:
    more = box.get(key)
    return isinstance(more, dict) and bool(as_flag(more.get("ignore")))
