"""What LVIS's annotation files say beyond COCO's: which classes were looked for in which image, and where it lies."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from datasets.annotations import Federated, Id
from datasets.ids import counterparts, remark_on, renamed
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
        That, None unless all images say it; and remarks: that some do, that a class is written as text where its id is
        a number or the other way round, or that not all classes say how frequent they are.

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
            if not is_list_of_ids(listed):
                raise UserError(
                    f"image {image['id']} in '{source}' has the {key} {typed(listed)}; it must be a list of ids"
                )
    found = counterparts(listed_classes(images), [c["id"] for c in categories])
    remarks = [remark_on(found, f"'{source}': in {' or '.join(LISTS)}", "the categories")] if found else []
    for image in images:
        for key in LISTS:
            if image[key]:
                columns[key][image["id"]] = tuple(renamed(image[key], found))
    frequencies = {c["id"]: c["frequency"] for c in categories if c.get("frequency") in FREQUENCIES}
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


def is_list_of_ids(listed: object) -> TypeGuard[list[Id]]:
    """Whether this can be one of an image's lists."""
    return isinstance(listed, list) and all(map(is_id, listed))


def listed_classes(images: Iterable[dict[str, Any]]) -> list[Id]:
    """Every class that a list of an image names, as often as it is named."""
    lists = (image[key] for image in images for key in LISTS if is_list_of_ids(image.get(key)))
    return [category for listed in lists for category in listed]


def merge_lists(image: dict[str, Any], double: Mapping[str, Any]) -> list[str]:
    """Add the classes in the lists of another entry of the same image; which lists are others then.

    A list that the image does not have is taken over. What is no list of ids is neither changed nor added.
    """
    changed = []
    for key in LISTS:
        listed, others = image.get(key), double.get(key)
        kept = [] if listed is None else listed
        if is_list_of_ids(kept) and is_list_of_ids(others):
            merged = kept + [category for category in dict.fromkeys(others) if category not in kept]
            if merged != listed:
                image[key] = merged
                changed.append(key)
    return changed


def renumber(image: dict[str, Any], new_of: Mapping[Id, Id]) -> list[str]:
    """Write the classes in an image's lists by their new ids; which lists are others then. What has none stays."""
    changed = []
    for key in LISTS:
        listed = image.get(key)
        if is_list_of_ids(listed) and any(category in new_of and new_of[category] != category for category in listed):
            image[key] = renamed(listed, new_of)
            changed.append(key)
    return changed
