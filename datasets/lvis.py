"""What LVIS's annotation files say beyond COCO's: which classes were looked for in which image, and where it lies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from datasets.annotations import Federated, Id
from datasets.class_lists import ClassLists
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
    return image | {"file_name": end_of(image["coco_url"])}


def end_of(coco_url: str) -> str:
    """The folder and the name of a file, of its address."""
    return "/".join(coco_url.split("/")[-2:])


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
    if stated < len(images):
        return None, [remark_on_lists(stated, len(images), source)] if stated else []
    for image in images:
        for key in LISTS:
            listed = image[key]
            if not is_list_of_ids(listed):
                raise UserError(
                    f"image {image['id']} in '{source}' has the {key} {typed(listed)}; it must be a list of ids"
                )
    found = counterparts(listed_classes(images), [c["id"] for c in categories])
    remarks = [remark_on(found, f"'{source}': in {' or '.join(LISTS)}", "the categories")] if found else []
    negatives, partly = (ClassLists.of((i["id"], renamed(i[key], found)) for i in images) for key in LISTS)
    frequencies, of_classes = frequencies_of([(c["id"], c.get("frequency")) for c in categories], source)
    return Federated(negatives, partly, frequencies), remarks + of_classes


def remark_on_lists(stated: int, images: int, source: str | Path) -> str:
    """A sentence on a file that has the lists for some of its images alone."""
    lists = " and ".join(LISTS)
    return f"'{source}': {stated} of {images} images have {lists}; the others do not, so the lists do not count"


def frequencies_of(classes: Sequence[tuple[Id, object]], source: str | Path) -> tuple[dict[Id, str], list[str]]:
    """How frequent each class is, of what its entry says beside its id; and a remark, if some do not say it."""
    frequencies = {number: str(said) for number, said in classes if said in FREQUENCIES}
    if not 0 < len(frequencies) < len(classes):
        return frequencies, []
    return frequencies, [
        f"'{source}': {len(classes) - len(frequencies)} of {len(classes)} categories have no frequency r, c "
        "or f, and count in neither APr, APc nor APf"
    ]


def to_lists(federated: Federated, images: Iterable[Id]) -> Iterator[dict[str, list[Id]]]:
    """The lists of the images' entries, one after the other; the undo of `federated_of`."""
    classes_of = [lists.to_dict() for lists in (federated.negatives, federated.not_exhaustive)]
    return ({key: list(of.get(image, ())) for key, of in zip(LISTS, classes_of)} for image in images)


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
