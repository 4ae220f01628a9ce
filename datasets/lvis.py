"""What LVIS's annotation files say beyond COCO's: which classes were looked for in which image, and where it lies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.annotations import Federated, Id
from datasets.values import is_id, typed
from util.errors import UserError

LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
FREQUENCIES = ("r", "c", "f")


def with_file_name(image: object) -> object:
    """An entry of an image with a `file_name`: LVIS v1 has the end of a `coco_url` instead, `val2017/000000000139.jpg`.

    Anything else stays as it is.
    """
    if not isinstance(image, dict) or "file_name" in image or not isinstance(image.get("coco_url"), str):
        return image
    return image | {"file_name": "/".join(image["coco_url"].split("/")[-2:])}


def federated_of(
    images: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]], source: str | Path
) -> tuple[Federated | None, list[str]]:
    """Which classes were looked for in which image.

    Args:
        images: entries with ids.
        categories: entries with ids.
        source: the file, which errors name.

    Returns:
        That, None unless all images say it; and remarks: that some do, or that not all classes say how frequent they
        are.

    Raises:
        UserError: a list of an image that is no list of ids.
    """
    stated = sum(all(image.get(key) is not None for key in LISTS) for image in images)
    if not stated:
        return None, []
    if stated < len(images):
        lists = " and ".join(LISTS)
        return None, [
            f"'{source}': {stated} of {len(images)} images have {lists}; the others do not, so the lists do not count"
        ]
    columns: dict[str, dict[Id, tuple[Id, ...]]] = {key: {} for key in LISTS}
    for image in images:
        for key in LISTS:
            listed = image[key]
            if not isinstance(listed, list) or not all(map(is_id, listed)):
                raise UserError(
                    f"image {image['id']} in '{source}' has the {key} {typed(listed)}; it must be a list of ids"
                )
            if listed:
                columns[key][image["id"]] = tuple(listed)
    frequencies = {c["id"]: c["frequency"] for c in categories if c.get("frequency") in FREQUENCIES}
    remarks = []
    if 0 < len(frequencies) < len(categories):
        remarks.append(
            f"'{source}': {len(categories) - len(frequencies)} of {len(categories)} categories have no frequency r, c "
            "or f, and count in neither APr, APc nor APf"
        )
    return Federated(columns[LISTS[0]], columns[LISTS[1]], frequencies), remarks


def to_lists(federated: Federated, image: Id) -> dict[str, list[Id]]:
    """The lists of an image's entry; the undo of `federated_of`."""
    classes = (federated.negatives, federated.not_exhaustive)
    return {key: list(of.get(image, ())) for key, of in zip(LISTS, classes)}
