"""Mends the annotations of a COCO file, change by change. What needs a person's judgement is left as it is."""

from collections.abc import Callable, Mapping
from typing import Any

from datasets.annotations import Id
from datasets.findings import Change
from datasets.fix_annotations import AnnotationFixes, Size
from datasets.ids import counterparts
from datasets.lvis import listed_classes, merge_lists, renumber
from datasets.new_ids import new_numbers
from datasets.values import as_whole, is_id, is_name, stated_size, typed


def mend(content: dict[str, Any], sizes: Mapping[Id, Size]) -> tuple[dict[str, Any], list[Change]]:
    """A mended copy of the content of a COCO file, and all that is different in it.

    Ids become whole numbers, and unique. Boxes are clipped to their images; impossible and doubled ones are removed,
    and annotations of unknown images and classes. Areas and `iscrowd` become numbers. All other keys stay. Two images
    or classes of one id stay as they are, for which annotation is of which is not known; so does an `iscrowd` that
    cannot be read.

    Args:
        content: as it was read; it is not changed.
        sizes: (width, height) of the images in pixels, by their ids, where that is known.
    """
    changes: list[Change] = []
    mended = dict(content)
    category_of: dict[Id, Id] = {}
    if isinstance(content.get("categories"), list):
        mended["categories"], category_of = _mend_categories(content["categories"], changes)
    mended["images"], doubles, image_of = _mend_images(content["images"], sizes, changes)
    _mend_lists(mended["images"], doubles, category_of, changes)
    if isinstance(content.get("annotations"), list):
        images = {entry["id"]: entry for entry in reversed(mended["images"])}  # of two with one id the first
        known = {image_of[old]: size for old, size in sizes.items() if old in image_of}
        known |= {number: size for number, entry in images.items() if (size := stated_size(entry))}
        todo = AnnotationFixes(images, known, image_of, category_of, changes)
        mended["annotations"] = todo.mend(content["annotations"])
    return mended, changes


def _mend_categories(entries: list, changes: list[Change]) -> tuple[list[dict], dict[Id, Id]]:
    """The classes that can be read, and the new id of each old one."""
    kept: list[dict] = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not is_name(entry.get("name")):
            changes.append(Change("malformed category removed", None, None, f"entry {i}"))
        elif any((c["id"], c["name"]) == (entry["id"], entry["name"]) for c in kept):
            changes.append(Change("doubled category removed", None, None, f"{entry['id']} {entry['name']}"))
        else:
            kept.append(dict(entry))
    return kept, _number(kept, "category", lambda entry: None, changes)


def _mend_images(
    entries: list, sizes: Mapping[Id, Size], changes: list[Change]
) -> tuple[list[dict], list[dict], dict[Id, Id]]:
    """The images that can be read, each file once; further entries of their files; and the new id of each old one."""
    kept: list[dict] = []
    doubles: list[dict] = []
    of_file: dict[str, dict] = {}
    merged: dict[Id, Id] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            changes.append(Change("malformed image entry removed", None, None, f"entry {i}"))
            continue
        file, first = entry["file_name"], of_file.get(entry["file_name"])
        if first is not None:
            detail = f"id {entry['id']}: its annotations go to the first entry, id {first['id']}"
            changes.append(Change("doubled image entry removed", file, None, detail))
            merged.setdefault(entry["id"], first["id"])
            doubles.append(dict(entry))
            continue
        copy = dict(entry)
        if stated_size(copy) is None and (copy.get("width"), copy.get("height")) != (None, None):
            _mend_size(copy, sizes.get(copy["id"]), changes)
        kept.append(copy)
        of_file[file] = copy
    numbers = _number(kept, "image", lambda entry: entry["file_name"], changes)
    return kept, doubles, {old: numbers[first] for old, first in merged.items()} | numbers


def _mend_lists(images: list[dict], doubles: list[dict], category_of: Mapping[Id, Id], changes: list[Change]) -> None:
    """Name the classes in the lists of LVIS's images by their new ids; those of further entries go to the first."""
    found = counterparts(listed_classes([*images, *doubles]), category_of)
    new_of = dict(category_of) | {used: category_of[listed] for used, listed in found.items()}
    for image in images:
        for key in renumber(image, new_of):
            changes.append(Change(f"{key} changed", image["file_name"], None, f"it is now {image[key]}"))
    of_file = {image["file_name"]: image for image in images}
    for double in doubles:
        renumber(double, new_of)
        image = of_file[double["file_name"]]
        for key in merge_lists(image, double):
            changes.append(Change(f"{key} merged", image["file_name"], None, f"it is now {image[key]}"))


def _mend_size(entry: dict, measured: Size | None, changes: list[Change]) -> None:
    """Give an image whose size cannot be read the one that its file has, or what the text says, or none."""
    before = f"width {typed(entry.get('width'))} and height {typed(entry.get('height'))}"
    read = stated_size({key: as_whole(entry.get(key)) for key in ("width", "height")})
    size = measured or read
    for i, key in enumerate(("width", "height")):
        entry.pop(key, None)
        if size:
            entry[key] = size[i]
    after = f"{size[0]} and {size[1]}" if size else "left out"
    changes.append(Change("image size changed", entry["file_name"], None, f"{before}: now {after}"))


def _number(
    entries: list[dict], what: str, file_of: Callable[[dict], str | None], changes: list[Change]
) -> dict[Id, Id]:
    """Give entries whose id is text a number: the one that the text says, if it is free.

    Returns:
        The new id of each old one.
    """
    numbers = new_numbers(entry["id"] for entry in entries)
    for entry in entries:
        new = numbers[entry["id"]]
        if isinstance(entry["id"], str):
            detail = f"{typed(entry['id'])} is now {new}"
            changes.append(Change(f"{what} id made a number", file_of(entry), None, detail))
            entry["id"] = new
    return numbers
