"""What is wrong with annotations, and how many objects they are by class, size and image."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.annotations import Annotations, Id
from datasets.data_report import DataReport
from datasets.faults import IMPOSSIBLE, area_fault, box_fault
from datasets.findings import Defect
from datasets.ids import counterparts
from datasets.suspects import entries_of, suspects
from datasets.values import as_box, as_flag, is_box, is_crowd, is_id, stated_size, typed


@dataclass
class _Listed:
    """Images and classes by their ids, and the ids that are meant where the type is another one."""

    images: dict[Id, dict]
    categories: dict[Id, str]
    meant: dict[str, dict[Id, Id]]

    def image(self, entry: dict) -> dict | None:
        """The image of an annotation."""
        return self.images.get(self.id(entry, "image_id")) if is_id(entry.get("image_id")) else None

    def id(self, entry: dict, key: str) -> Any:
        """The id that an annotation refers to."""
        return self.meant[key].get(entry[key], entry[key])


def check_annotations(annotations: list | None, images: dict, categories: dict, report: DataReport) -> None:
    """Add what is wrong with annotations to the report, and their numbers.

    Args:
        annotations: the file's list; None if it has none.
        images: entries of the images by their ids.
        categories: names of the classes by their ids.
        report: to which is added.
    """
    report.annotated = annotations is not None
    annotations = annotations or []
    report.annotations = len(annotations)
    listed = _Listed(images, categories, {})
    for key, known in (("image_id", images), ("category_id", categories)):
        used = [e[key] for e in annotations if isinstance(e, dict) and is_id(e.get(key))]
        listed.meant[key] = counterparts(used, known)
    crowds, objects = _list_faults(annotations, listed, report)
    report.crowds = crowds
    _count(objects, listed, report)


def check_columns(read: Annotations, images: dict, categories: dict, report: DataReport) -> None:
    """The same for objects in columns, whose images are those of the dictionary, in its order."""
    report.annotations, report.crowds = len(read), int(read.crowds.sum())
    sizes = np.array([stated_size(entry) or (math.inf, math.inf) for entry in images.values()], dtype=np.float64)
    suspected = entries_of(read, suspects(read, sizes.reshape(-1, 2)))
    _list_faults(suspected, _Listed(images, categories, {"image_id": {}, "category_id": {}}), report)
    counted = ~read.crowds & (read.image_at >= 0) & (read.class_at >= 0)
    of_class = Counter(dict.fromkeys(categories.values(), 0))
    for name, n in zip(categories.values(), np.bincount(read.class_at[counted], minlength=len(categories)).tolist()):
        of_class[name] += n
    with np.errstate(over="ignore"):
        areas = read.boxes[counted, 2] * read.boxes[counted, 3]
    kinds = np.digitize(areas[np.isfinite(areas)], (32**2, 96**2))
    sizes_of = dict(zip(("small", "medium", "large"), np.bincount(kinds, minlength=3).tolist()))
    _note_counts(report, of_class, sizes_of, np.bincount(read.image_at[counted], minlength=len(images)))


def _list_faults(entries: Iterable, listed: _Listed, report: DataReport) -> tuple[int, list[dict]]:
    """Add what is wrong with each annotation to the report; the number of crowds, and the objects."""
    ids: set[Id] = set()
    seen: dict[tuple, Any] = {}
    objects, crowds = [], 0
    for i, entry in enumerate(entries):
        faults = _malformed(entry, i)
        if not faults:
            if entry["id"] in ids:
                faults.append(("duplicate annotation id", "another annotation has this id"))
            ids.add(entry["id"])
            faults += _annotation_faults(entry, listed)
            if is_box(entry["bbox"]) and is_crowd(entry):
                crowds += 1
            elif is_box(entry["bbox"]):
                objects.append(entry)
                same = (listed.id(entry, "image_id"), listed.id(entry, "category_id"), *entry["bbox"])
                if same in seen:
                    faults.append(("doubled box", f"the same box and class as annotation {seen[same]}"))
                seen.setdefault(same, entry["id"])
        image = listed.image(entry) if isinstance(entry, dict) else None
        number = entry.get("id", f"(entry {i})") if isinstance(entry, dict) else None
        file = image["file_name"] if image else None
        report.defects += [Defect(kind, file, number, detail) for kind, detail in faults]
    return crowds, objects


def _malformed(entry: object, i: int) -> list[tuple[str, str]]:
    """Why an annotation cannot be looked at any further."""
    if not isinstance(entry, dict):
        return [("malformed annotation", f"entry {i} is no object")]
    missing = [k for k in ("id", "image_id", "category_id", "bbox") if k not in entry]
    if missing:
        return [("malformed annotation", f"no '{missing[0]}'")]
    unfit = [k for k in ("id", "image_id", "category_id") if not is_id(entry[k])]
    return [("malformed annotation", f"{unfit[0]} is {entry[unfit[0]]}, not a number")] if unfit else []


def _annotation_faults(entry: dict, listed: _Listed) -> list[tuple[str, str]]:
    """What is wrong with an annotation by itself, as kinds and particulars."""
    faults, image = [], listed.image(entry)
    if image is None:
        faults.append(("unknown image", f"image id {typed(entry['image_id'])} is not listed"))
    if listed.id(entry, "category_id") not in listed.categories:
        faults.append(("unknown category", f"category id {typed(entry['category_id'])} is not listed"))
    for key, meant in listed.meant.items():
        if entry[key] in meant:
            faults.append(("id of another type", f"{key} {typed(entry[key])} is listed as {typed(meant[entry[key]])}"))
    crowd = entry.get("iscrowd")
    if as_flag(crowd) is None or isinstance(crowd, str):
        faults.append(("iscrowd", f"iscrowd {typed(crowd)} should be 0 or 1"))
    box = as_box(entry["bbox"])
    if box is None or not is_box(entry["bbox"]):
        return [*faults, ("malformed box", f"bbox {entry['bbox']} is not four numbers")]
    fault = box_fault(box, stated_size(image) if image else None)
    if fault:
        faults.append(fault)
    if fault is None or fault[0] not in IMPOSSIBLE:
        of_area = area_fault(entry.get("area"), box)
        faults += [("area", of_area)] if of_area else []
    return faults


def _count(objects: list[dict], listed: _Listed, report: DataReport) -> None:
    """Count objects by class, size and image; those of an unknown image or class are left out."""
    of_class = Counter(dict.fromkeys(listed.categories.values(), 0))
    sizes, per_image = Counter(small=0, medium=0, large=0), Counter(dict.fromkeys(listed.images, 0))
    for entry in objects:
        image, category = listed.id(entry, "image_id"), listed.id(entry, "category_id")
        if image in listed.images and category in listed.categories:
            of_class[listed.categories[category]] += 1
            per_image[image] += 1
            area = math.prod((as_box(entry["bbox"]) or [])[2:])
            if math.isfinite(area):
                sizes["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1
    _note_counts(report, of_class, sizes, np.array(list(per_image.values()), dtype=np.int64))


def _note_counts(report: DataReport, of_class: dict, sizes: dict, of_image: np.ndarray) -> None:
    """Put numbers of objects into the report: by class name, by size, and `[I]` of each image."""
    report.objects_of_class, report.box_sizes = dict(of_class), dict(sizes)
    report.without_objects = int((of_image == 0).sum())
    if len(of_image):
        report.objects_per_image = (int(of_image.min()), float(np.median(of_image)), int(of_image.max()))
