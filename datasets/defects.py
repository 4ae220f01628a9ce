"""Reads a whole data set and reports what it holds and what is wrong with it."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import Annotations, Id, ImageEntry
from datasets.checked import all_missing, boxes_of_images
from datasets.coco import read_coco, read_lists, to_coco
from datasets.coco_columns import read_usual
from datasets.faults import IMPOSSIBLE, area_fault, box_fault
from datasets.findings import Finding, listing
from datasets.fix import Change, copies_of, mend, write_copy
from datasets.ids import counterparts
from datasets.inspection import Look, SizeMismatch, inspect
from datasets.lvis import LISTS, is_list_of_ids
from datasets.paths import dataset_paths
from datasets.picture_file import MissingImage
from datasets.readers import read_annotations, reader_of
from datasets.suspects import entries_of, plain_enough, suspects
from datasets.values import as_box, as_flag, as_text, is_box, is_crowd, is_id, is_name, stated_size, typed
from util.config import DataPaths
from util.errors import UserError


class Defect(Finding):
    """Something wrong."""


@dataclass
class DataReport:
    """What a data set holds.

    Attributes:
        annotation_file, image_folder: the data set.
        images, annotations, crowds, without_objects: counts.
        objects_of_class: number of objects by class name.
        image_sizes: 10 most frequent `WxH` with their number.
        box_sizes: objects that COCO calls small (< 32^2 pixels), medium, and large (>= 96^2).
        objects_per_image: smallest, median and largest number.
        defects: everything wrong.
        annotated: whether the file says which objects there are; it may list images alone.
        mended_file: where a mended copy was written, if it was.
        changes: what is different in it.
        left: what is still wrong in it.
    """

    annotation_file: str
    image_folder: str
    images: int = 0
    annotations: int = 0
    crowds: int = 0
    without_objects: int = 0
    objects_of_class: dict[str, int] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    box_sizes: dict[str, int] = field(default_factory=dict)
    objects_per_image: tuple[int, float, int] = (0, 0.0, 0)
    defects: list[Defect] = field(default_factory=list)
    annotated: bool = True
    mended_file: str | None = None
    changes: list[Change] = field(default_factory=list)
    left: list[Defect] = field(default_factory=list)

    @property
    def remaining(self) -> list[Defect]:
        """What is wrong with the mended copy, if there is one; else with the file."""
        return self.left if self.mended_file else self.defects

    def to_dict(self) -> dict:
        """Plain dictionaries, for JSON."""
        return asdict(self)

    def text(self, show: int = 20) -> str:
        """A page to read; of each kind of defect at most `show`."""
        low, median, high = self.objects_per_image
        lines = [
            f"{self.annotation_file}",
            f"  images        {self.images} ({self.without_objects} without objects)",
            f"  annotations   {self.annotations} ({self.crowds} crowds)"
            if self.annotated
            else "  annotations   not known: the file has no list 'annotations'",
            f"  per image     {low} to {high} objects, median {median:g}",
            "  image sizes   " + ", ".join(f"{size} ({n})" for size, n in self.image_sizes.items()),
            "  box sizes     " + ", ".join(f"{name} {n}" for name, n in self.box_sizes.items()),
            f"  classes       {len(self.objects_of_class)}",
        ]
        width = max((len(name) for name in self.objects_of_class), default=0)
        lines += [f"    {name:<{width}}  {n}" for name, n in self.objects_of_class.items()]
        lines += [f"  defects       {len(self.defects)}", *listing(self.defects, show)]
        if self.mended_file:
            lines += [f"  mended copy   {self.mended_file}", f"  changes       {len(self.changes)}"]
            lines += listing(self.changes, show)
            lines += [f"  left          {len(self.left)}", *listing(self.left, show)]
        return as_text("\n".join(lines))


def check_splits(data: DataPaths, fix: str | None = None, output: str | None = None) -> dict[str, DataReport]:
    """A report on each of the splits `train` and `val` that the configuration names.

    Args:
        data: the splits.
        fix: JSON file for a mended copy of the one split that is named, or a folder for `train.json` and `val.json`.
        output: file that the report will be written to, which must not be one of the others.

    Raises:
        UserError: it names neither, a file or folder is missing, or a file would be overwritten.
    """
    splits = {split: paths for split in ("train", "val") if (paths := dataset_paths(data, split))}
    if not splits:
        raise UserError(
            "nothing to check: give --data.root, or images and annotations (--data.train_* or --data.val_*)"
        )
    copies = copies_of({split: file for split, (_, file) in splits.items()}, fix, output)
    return {split: check_dataset(*paths, data.exif, split, mended=copies.get(split)) for split, paths in splits.items()}


def check_dataset(
    image_folder: str | Path,
    annotation_file: str | Path,
    exif: str = "auto",
    split: str = "train",
    mended: Path | None = None,
) -> DataReport:
    """Read every annotation and every image of a data set.

    COCO files are taken as they are, so that every malformed entry is listed. A file in another format must pass its
    reader first, which names the first malformed entry.

    Args:
        image_folder, annotation_file: the data set.
        exif: what boxes of EXIF-rotated images were drawn on, see `data.exif`.
        split: `train` or `val`, for messages.
        mended: where to write a mended copy of the annotations, in COCO format.

    Raises:
        UserError: the file or folder is missing, or the file is not in its format at all.
    """
    image_folder, annotation_file = Path(image_folder), Path(annotation_file)
    if not image_folder.is_dir():
        raise UserError(f"no image folder '{image_folder}'")
    is_coco = reader_of(annotation_file) is read_coco
    read = read_usual(annotation_file) if is_coco else read_annotations(annotation_file, image_folder)
    if read is not None and (mended or not plain_enough(read)):
        content, read = read_lists(annotation_file) if is_coco else to_coco(read), None
    elif read is None:
        content = read_lists(annotation_file)
    else:  # what is usual is looked at in columns, and entry by entry only where something may be wrong
        content = to_coco(replace(read.of_objects(np.zeros(0, dtype=np.int64)), annotated=False))
    report = DataReport(str(annotation_file), str(image_folder))
    categories = _check_categories(content.get("categories") or [], report)
    images = _check_entries(content["images"], report)
    listed = len(report.defects)
    _check_files(images, read or content.get("annotations") or [], image_folder, report, exif, split)
    of_files = report.defects[listed:]
    if read is None:
        _check_annotations(content.get("annotations"), images, categories, report)
    else:
        _check_columns(read, images, categories, report)
    if mended:
        sizes = {number: size for number, entry in images.items() if (size := stated_size(entry))}
        copy, report.changes = mend(content, sizes)
        write_copy(copy, mended)
        report.mended_file, report.left = str(mended), _left(copy, of_files, images)
    return report


def _left(content: dict[str, Any], of_files: list[Defect], checked: dict) -> list[Defect]:
    """What is wrong with a mended copy.

    Args:
        content: the copy.
        of_files: what was found to be wrong with image files.
        checked: entries of the images that were read, by their ids, with the sizes that they have.
    """
    report = DataReport("", "")
    categories = _check_categories(content.get("categories") or [], report)
    images = _check_entries(content["images"], report)
    size_of = {entry["file_name"]: stated_size(entry) for entry in checked.values()}
    for entry in images.values():
        size = size_of.get(entry["file_name"])
        if stated_size(entry) is None and size is not None:
            entry["width"], entry["height"] = size
    _check_annotations(content.get("annotations"), images, categories, report)
    return report.defects + of_files


def _check_categories(entries: list, report: DataReport) -> dict:
    names: dict[Any, str] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not is_name(entry.get("name")):
            detail = f"entry {i} needs 'id', a number, and 'name', text"
            report.defects.append(Defect("malformed category", None, None, detail))
        elif entry["id"] in names:
            report.defects.append(
                Defect(
                    "duplicate category id", None, None, f"{entry['id']} is {names[entry['id']]} and {entry['name']}"
                )
            )
        else:
            names[entry["id"]] = as_text(entry["name"])
    for name, count in Counter(names.values()).items():
        if count > 1:
            report.defects.append(Defect("duplicate category name", None, None, f"'{name}' names {count} categories"))
    return names


def _check_entries(entries: list, report: DataReport) -> dict:
    images: dict[Any, dict] = {}
    files: Counter[str] = Counter()
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            detail = f"entry {i} needs 'id', a number, and 'file_name', text"
            report.defects.append(Defect("malformed image entry", None, None, detail))
            continue
        files[entry["file_name"]] += 1
        for key in LISTS:  # of LVIS
            if entry.get(key) is not None and not is_list_of_ids(entry[key]):
                detail = f"{key} {typed(entry[key])} must be a list of ids"
                report.defects.append(Defect("malformed image entry", entry["file_name"], None, detail))
        if entry["id"] in images:
            report.defects.append(
                Defect(
                    "duplicate image id",
                    entry["file_name"],
                    None,
                    f"id {entry['id']} is also of {images[entry['id']]['file_name']}",
                )
            )
        else:
            images[entry["id"]] = dict(entry)
            stated = (entry.get("width"), entry.get("height"))
            if stated_size(entry) is None and stated != (None, None):
                detail = f"width {stated[0]!r} and height {stated[1]!r} must be whole numbers of pixels"
                report.defects.append(Defect("malformed image entry", entry["file_name"], None, detail))
    report.defects += [
        Defect("image listed twice", file, None, f"listed {n} times") for file, n in files.items() if n > 1
    ]
    report.images = len(images)
    return images


def _check_files(
    images: dict, annotations: list | Annotations, folder: Path, report: DataReport, exif: str, split: str
) -> None:
    """Decode every image; its size, in the frame that it is read in, becomes the size of its entry."""
    entries = list(images.values())

    def boxes_of(positions: Sequence[int]) -> list[np.ndarray]:
        if isinstance(annotations, Annotations):
            return boxes_of_images(annotations, positions)
        boxes: dict[Any, list] = {entries[position]["id"]: [] for position in positions}
        for entry in annotations:
            image = entry.get("image_id") if isinstance(entry, dict) else None
            if is_id(image) and image in boxes and is_box(entry.get("bbox")):
                boxes[image].append(entry["bbox"])
        return [np.array(some, dtype=np.float64).reshape(-1, 4) for some in boxes.values()]

    listed = [ImageEntry(e["id"], e["file_name"], *(stated_size(e) or (None, None))) for e in entries]
    looks = inspect(folder, listed, boxes_of, exif, whole=True, description=f"reading {split} images")
    if missing := all_missing(looks, folder, split):
        report.defects.append(Defect("all images missing", None, None, missing))
        return
    sizes: Counter[str] = Counter()
    for entry, look in zip(entries, looks):
        report.defects += _faults_of(look)
        if look.size is not None and (look.fault is None or isinstance(look.fault, SizeMismatch)):
            sizes[f"{look.size[0]}x{look.size[1]}"] += 1
            if look.fault is None:
                entry["width"], entry["height"] = look.size
    report.image_sizes = dict(sizes.most_common(10))


def _faults_of(look: Look) -> Iterator[Defect]:
    file = look.entry.file_name
    if not look.as_written:
        yield Defect("file name written otherwise", file, None, f"'{look.path}' is read")
    if isinstance(look.fault, SizeMismatch):
        yield Defect("size mismatch", file, None, str(look.fault))
    elif look.fault is not None:
        kind = "missing image" if isinstance(look.fault, MissingImage) else "unreadable image"
        yield Defect(kind, file, None, str(look.fault))
    elif look.guessed:
        read, other = ("as it is stored", "upright") if look.frame == "raw" else ("upright", "raw")
        kind = "annotated at unrotated size" if look.at_unrotated_size else "annotated on either view"
        detail = f"nothing tells on which view its boxes were drawn; it is read {read} unless --data.exif is {other}"
        yield Defect(f"EXIF-rotated, {kind}", file, None, detail)


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


def _check_annotations(annotations: list | None, images: dict, categories: dict, report: DataReport) -> None:
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


def _check_columns(read: Annotations, images: dict, categories: dict, report: DataReport) -> None:
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
