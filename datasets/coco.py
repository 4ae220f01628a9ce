"""The COCO detection format: JSON with the lists images, annotations and categories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import Annotations, CategoryEntry, ImageEntry
from datasets.areas import remark_on_areas
from datasets.coco_columns import read_usual
from datasets.id_column import IdColumn
from datasets.ids import counterparts, remark_on, renamed
from datasets.image_table import ImageTable
from datasets.json_file import read_json
from datasets.lvis import federated_of, to_lists, with_file_name
from datasets.values import as_area, as_box, as_flag, as_text, is_box, is_crowd, is_id, is_name, stated_size, typed
from util.errors import UserError

REQUIRED = {  # of each entry
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}

MENDED = "check-data --fix writes a mended copy"


def read_lists(path: str | Path) -> dict[str, Any]:
    """The content of a COCO file as it is: the entries of its three lists are not looked at.

    Only images that have a `coco_url` in the place of a `file_name`, as in LVIS's files, get one.
    A file that lists images alone, like COCO's image_info of its test images, has no `annotations`, and may have no
    `categories`.

    Raises:
        UserError: no such file, no JSON, or a list is missing.
    """
    content = read_json(path, "annotation file")
    if not isinstance(content, dict):
        scored = isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]
        kind = ": it is a list of detections (--detections)" if scored else ""
        raise UserError(f"annotation file '{path}' has no list 'images'{kind}; it must be in COCO detection format")
    listed = bool(content.get("images")) and content.get("annotations") is None
    for part in ("images", "annotations", "categories"):
        optional = listed and content.get(part) is None and part != "images"
        if not optional and not isinstance(content.get(part), list):
            raise UserError(f"annotation file '{path}' has no list '{part}'; it must be in COCO detection format")
    content["images"] = [with_file_name(image) for image in content["images"]]
    return content


def read_coco(path: str | Path) -> Annotations:
    """What a COCO file says.

    Raises:
        UserError: no such file, no JSON, or a part is missing or malformed; names the entry.
    """
    usual = read_usual(Path(path))
    return from_coco(read_lists(path), path) if usual is None else usual


def from_coco(content: dict[str, Any], source: str | Path) -> Annotations:
    """The three lists of a COCO file as annotations.

    An id that refers to an image or a class by text where the number is listed, or the other way round, is matched. An
    area that is no positive number is replaced by width times height. `remarks` say so.

    Args:
        content: `images`, `annotations` and `categories`; whatever else entries hold is left out. Without
            `annotations`, objects are not known, and `categories` may be missing, too.
        source: the file, which errors name.

    Raises:
        UserError: a part is missing or malformed; names the entry.
    """
    annotated = content.get("annotations") is not None
    lists: dict[str, list] = {part: content.get(part) or [] for part in REQUIRED}
    _check(lists, source)
    if annotated and not lists["categories"]:
        raise UserError(f"annotation file '{source}' lists no categories")
    objects, remarks = lists["annotations"], []
    columns = {}
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        columns[key] = [a[key] for a in objects]
        found = counterparts(columns[key], [entry["id"] for entry in lists[part]])
        columns[key] = renamed(columns[key], found)
        remarks += [remark_on(found, f"'{source}': {key}", f"the {part}")] if found else []
    boxes = np.array([as_box(a["bbox"]) for a in objects], dtype=np.float64).reshape(-1, 4)
    areas, of_boxes = _areas([a.get("area") for a in objects], boxes)
    if of_boxes:
        remarks.append(remark_on_areas(of_boxes, len(objects), source))
    crowds = np.array([is_crowd(a) for a in objects], dtype=bool)
    ignored = int(crowds.sum()) - sum(bool(as_flag(a.get("iscrowd"))) for a in objects)
    if ignored:
        remarks.append(
            f"'{source}': {ignored} of {len(objects)} annotations have ignore 1 and are taken for crowds: they are no "
            "targets of training, and to find them is neither right nor wrong"
        )
    federated, of_lists = federated_of(lists["images"], lists["categories"], source)
    remarks += of_lists
    return Annotations(
        Path(source),
        [CategoryEntry(c["id"], as_text(c["name"])) for c in lists["categories"]],
        ImageTable.of(
            ImageEntry(i["id"], as_text(i["file_name"]), *(stated_size(i) or (None, None))) for i in lists["images"]
        ),
        IdColumn.of([a["id"] for a in objects]),
        IdColumn.of(columns["image_id"]),
        IdColumn.of(columns["category_id"]),
        boxes,
        areas,
        crowds,
        annotated,
        remarks,
        federated,
    )


def to_coco(annotations: Annotations) -> dict[str, Any]:
    """The lists of a COCO file that says the same; the undo of `from_coco`."""
    columns = (annotations.ids, annotations.image_ids, annotations.category_ids, annotations.boxes.tolist())
    figures = (annotations.areas.tolist(), annotations.crowds.tolist())
    content: dict[str, Any] = {
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
    if federated := annotations.federated:
        for entry, lists in zip(content["images"], to_lists(federated, annotations.images.ids)):
            entry |= lists
        for entry in content["categories"]:
            entry |= {"frequency": known} if (known := federated.frequencies.get(entry["id"])) else {}
    if not annotations.annotated:
        del content["annotations"]
    return content


def _areas(stated: Sequence[object], boxes: np.ndarray) -> tuple[np.ndarray, int]:
    """`[N]` areas: as stated where that is a positive number, of the boxes elsewhere.

    Returns:
        The areas, and how many are of boxes although something is stated.
    """
    read = [as_area(value) for value in stated]
    with np.errstate(over="ignore", invalid="ignore"):  # of impossible boxes
        of_boxes = boxes[:, 2] * boxes[:, 3]
    areas = np.array([b if a is None else a for a, b in zip(read, of_boxes.tolist())], dtype=np.float64)
    return areas, sum(a is None and value is not None for a, value in zip(read, stated))


def _check(lists: dict[str, list], source: str | Path) -> None:
    for part, keys in REQUIRED.items():
        for i, entry in enumerate(lists[part]):
            missing = [k for k in keys if not isinstance(entry, dict) or k not in entry]
            if missing:
                raise UserError(f"entry {i} of '{part}' in '{source}' has no '{missing[0]}'")
            for key in ("id", "image_id", "category_id"):
                if not is_id(entry.get(key, 0)):
                    raise UserError(
                        f"entry {i} of '{part}' in '{source}' has the {key} {typed(entry[key])}; it must be a whole "
                        "number, or text"
                    )
    for part in ("images", "categories"):
        seen = set()
        for entry in lists[part]:
            if entry["id"] in seen:
                raise UserError(f"'{source}' gives the id {entry['id']} to two {part}; check-data lists all such")
            seen.add(entry["id"])
    for image in lists["images"]:
        _check_image(image, source)
    for category in lists["categories"]:
        if not is_name(category["name"]):
            raise UserError(
                f"category {category['id']} in '{source}' has the name {typed(category['name'])}; it must be text"
            )
    for annotation in lists["annotations"]:
        _check_annotation(annotation, source)


def _check_image(image: dict, source: str | Path) -> None:
    if not isinstance(image["file_name"], str):
        raise UserError(
            f"image {image['id']} in '{source}' has the file_name {typed(image['file_name'])}; it must be text"
        )
    if stated_size(image) is None and (image.get("width"), image.get("height")) != (None, None):
        raise UserError(
            f"image {image['id']} in '{source}' has the size {image.get('width')}x{image.get('height')}; "
            f"width and height must be whole numbers of pixels, no text; {MENDED}"
        )


def _check_annotation(annotation: dict, source: str | Path) -> None:
    where = f"annotation {annotation['id']} in '{source}'"
    if not is_box(annotation["bbox"]):
        raise UserError(
            f"{where} has the bbox {annotation['bbox']}; it must be four numbers [x, y, width, height]; {MENDED}"
        )
    if as_flag(annotation.get("iscrowd")) is None:
        raise UserError(f"{where} has the iscrowd {typed(annotation['iscrowd'])}; it must be 0 or 1")
