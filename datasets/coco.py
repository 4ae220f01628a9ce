"""The COCO detection format: JSON with the lists images, annotations and categories."""

import json
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from datasets.annotations import Annotations, CategoryEntry, ImageEntry
from util.errors import UserError

REQUIRED = {  # of each entry
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def read_json(path: str | Path, what: str) -> Any:
    """Content of a JSON file; `what` says in errors what the file is.

    Raises:
        UserError: no such file, or no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no {what} '{path}'")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} '{path}' is not JSON: {error}") from None


def read_lists(path: str | Path) -> dict[str, list]:
    """The three lists of a COCO file as they are: their entries are not looked at.

    Raises:
        UserError: no such file, no JSON, or a list is missing.
    """
    content = read_json(path, "annotation file")
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"annotation file '{path}' has no list '{part}'; it must be in COCO detection format")
    return content


def read_coco(path: str | Path) -> Annotations:
    """What a COCO file says.

    Raises:
        UserError: no such file, no JSON, or a part is missing or malformed; names the entry.
    """
    return from_coco(read_lists(path), path)


def from_coco(content: dict[str, list], source: str | Path) -> Annotations:
    """The three lists of a COCO file as annotations.

    Args:
        content: `images`, `annotations` and `categories`; whatever else entries hold is left out.
        source: the file, which errors name.

    Raises:
        UserError: a part is missing or malformed; names the entry.
    """
    _check(content, source)
    objects = content["annotations"]
    areas = [a["bbox"][2] * a["bbox"][3] if a.get("area") is None else a["area"] for a in objects]
    return Annotations(
        Path(source),
        [CategoryEntry(c["id"], str(c["name"])) for c in content["categories"]],
        [ImageEntry(i["id"], i["file_name"], *(stated_size(i) or (None, None))) for i in content["images"]],
        [a["id"] for a in objects],
        [a["image_id"] for a in objects],
        [a["category_id"] for a in objects],
        np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4),
        np.array(areas, dtype=np.float64),
        np.array([bool(a.get("iscrowd")) for a in objects], dtype=bool),
    )


def to_coco(annotations: Annotations) -> dict[str, list]:
    """The three lists of a COCO file that says the same; the undo of `from_coco`."""
    columns = (annotations.ids, annotations.image_ids, annotations.category_ids, annotations.boxes.tolist())
    figures = (annotations.areas.tolist(), annotations.crowds.tolist())
    return {
        "images": [
            {"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in annotations.images
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, image, category, box, area, crowd in zip(*columns, *figures)
        ],
        "categories": [{"id": c.id, "name": c.name} for c in annotations.categories],
    }


def _check(content: dict[str, list], source: str | Path) -> None:
    for part, keys in REQUIRED.items():
        for i, entry in enumerate(content[part]):
            missing = [k for k in keys if not isinstance(entry, dict) or k not in entry]
            if missing:
                raise UserError(f"entry {i} of '{part}' in '{source}' has no '{missing[0]}'")
            for key in ("id", "image_id", "category_id"):
                if not is_id(entry.get(key, 0)):
                    raise UserError(
                        f"entry {i} of '{part}' in '{source}' has the {key} {entry[key]}; it must be a number"
                    )
    for part in ("images", "categories"):
        seen = set()
        for entry in content[part]:
            if entry["id"] in seen:
                raise UserError(f"'{source}' gives the id {entry['id']} to two {part}; check-data lists all such")
            seen.add(entry["id"])
    for image in content["images"]:
        if not isinstance(image["file_name"], str):
            raise UserError(
                f"image {image['id']} in '{source}' has the file_name {image['file_name']}; it must be text"
            )
        if stated_size(image) is None and (image.get("width"), image.get("height")) != (None, None):
            raise UserError(
                f"image {image['id']} in '{source}' has the size {image.get('width')}x{image.get('height')}; "
                "width and height must be whole numbers of pixels"
            )
    for annotation in content["annotations"]:
        if not is_box(annotation["bbox"]):
            raise UserError(
                f"annotation {annotation['id']} in '{source}' has the bbox {annotation['bbox']}; "
                "it must be four numbers [x, y, width, height]"
            )
        if not isinstance(annotation.get("area"), int | float | None):
            raise UserError(
                f"annotation {annotation['id']} in '{source}' has the area {annotation['area']!r}; "
                "it must be a number of square pixels"
            )
    if not content["categories"]:
        raise UserError(f"annotation file '{source}' lists no categories")


def is_box(box: object) -> bool:
    """Whether this is a list of four numbers (which may still make an impossible box)."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    )


def is_id(value: object) -> bool:
    """Whether this can be an id: a whole number (also written 7.0), or text as some tools have it."""
    return isinstance(value, str) or _is_whole(value)


def stated_size(entry: dict) -> tuple[int, int] | None:
    """(width, height) in pixels that an entry of an image states; None if it does not state both, as whole numbers."""
    width, height = entry.get("width"), entry.get("height")
    if not (_is_whole(width) and _is_whole(height) and width > 0 and height > 0):
        return None
    return int(width), int(height)


def _is_whole(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
