"""Reads a whole data set and reports what it holds and what is wrong with it."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import ImageEntry
from datasets.checked import all_missing
from datasets.coco import is_box, is_id, read_coco, read_lists, stated_size, to_coco
from datasets.inspection import Look, SizeMismatch, inspect
from datasets.paths import dataset_paths
from datasets.picture_file import MissingImage
from datasets.readers import read_annotations, reader_of
from util.config import DataPaths
from util.errors import UserError


@dataclass
class Defect:
    """Something wrong: its kind, the image file and annotation id (where there is one), and the particulars."""

    kind: str
    file: str | None
    annotation: int | str | None
    detail: str

    def __str__(self) -> str:
        where = [f"image {self.file}"] if self.file else []
        where += [f"annotation {self.annotation}"] if self.annotation is not None else []
        return f"{', '.join(where) or 'file'}: {self.detail}"


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

    def to_dict(self) -> dict:
        """Plain dictionaries, for JSON."""
        return asdict(self)

    def text(self, show: int = 20) -> str:
        """A page to read; of each kind of defect at most `show`."""
        low, median, high = self.objects_per_image
        lines = [
            f"{self.annotation_file}",
            f"  images        {self.images} ({self.without_objects} without objects)",
            f"  annotations   {self.annotations} ({self.crowds} crowds)",
            f"  per image     {low} to {high} objects, median {median:g}",
            "  image sizes   " + ", ".join(f"{size} ({n})" for size, n in self.image_sizes.items()),
            "  box sizes     " + ", ".join(f"{name} {n}" for name, n in self.box_sizes.items()),
            f"  classes       {len(self.objects_of_class)}",
        ]
        width = max((len(name) for name in self.objects_of_class), default=0)
        lines += [f"    {name:<{width}}  {n}" for name, n in self.objects_of_class.items()]
        by_kind = defaultdict(list)
        for defect in self.defects:
            by_kind[defect.kind].append(defect)
        lines.append(f"  defects       {len(self.defects)}")
        for kind, defects in by_kind.items():
            lines.append(f"    {kind} ({len(defects)})")
            lines += [f"      {defect}" for defect in defects[:show]]
            if len(defects) > show:
                lines.append(f"      ... and {len(defects) - show} more")
        return "\n".join(lines)


def check_splits(data: DataPaths) -> dict[str, DataReport]:
    """A report on each of the splits `train` and `val` that the configuration names.

    Raises:
        UserError: it names neither, or a file or folder is missing.
    """
    splits = {split: paths for split in ("train", "val") if (paths := dataset_paths(data, split))}
    if not splits:
        raise UserError(
            "nothing to check: give --data.root, or images and annotations (--data.train_* or --data.val_*)"
        )
    return {split: check_dataset(*paths, data.exif, split) for split, paths in splits.items()}


def check_dataset(
    image_folder: str | Path, annotation_file: str | Path, exif: str = "auto", split: str = "train"
) -> DataReport:
    """Read every annotation and every image of a data set.

    COCO files are taken as they are, so that every malformed entry is listed. A file in another format must pass its
    reader first, which names the first malformed entry.

    Args:
        image_folder, annotation_file: the data set.
        exif: what boxes of EXIF-rotated images were drawn on, see `data.exif`.
        split: `train` or `val`, for messages.

    Raises:
        UserError: the file or folder is missing, or the file is not in its format at all.
    """
    image_folder, annotation_file = Path(image_folder), Path(annotation_file)
    if not image_folder.is_dir():
        raise UserError(f"no image folder '{image_folder}'")
    is_coco = reader_of(annotation_file) is read_coco
    content = read_lists(annotation_file) if is_coco else to_coco(read_annotations(annotation_file))
    report = DataReport(str(annotation_file), str(image_folder))
    categories = _check_categories(content["categories"], report)
    images = _check_entries(content["images"], report)
    _check_files(images, content["annotations"], image_folder, report, exif, split)
    _check_annotations(content["annotations"], images, categories, report)
    return report


def _check_categories(entries: list, report: DataReport) -> dict:
    names: dict[Any, str] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or "name" not in entry:
            detail = f"entry {i} needs 'id', a number, and 'name'"
            report.defects.append(Defect("malformed category", None, None, detail))
        elif entry["id"] in names:
            report.defects.append(
                Defect(
                    "duplicate category id", None, None, f"{entry['id']} is {names[entry['id']]} and {entry['name']}"
                )
            )
        else:
            names[entry["id"]] = str(entry["name"])
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


def _check_files(images: dict, annotations: list, folder: Path, report: DataReport, exif: str, split: str) -> None:
    """Decode every image; its size, in the frame that it is read in, becomes the size of its entry."""
    entries = list(images.values())

    def boxes_of(positions: Sequence[int]) -> list[np.ndarray]:
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


def _check_annotations(annotations: list, images: dict, categories: dict, report: DataReport) -> None:
    of_class = Counter(dict.fromkeys(categories.values(), 0))
    sizes, per_image = Counter(small=0, medium=0, large=0), Counter(dict.fromkeys(images, 0))
    ids: set = set()
    seen: dict[tuple, Any] = {}
    report.annotations = len(annotations)

    for i, entry in enumerate(annotations):
        if not isinstance(entry, dict):
            report.defects.append(Defect("malformed annotation", None, None, f"entry {i} is no object"))
            continue
        key = entry.get("id", f"(entry {i})")
        image = images.get(entry["image_id"]) if is_id(entry.get("image_id")) else None
        file = image["file_name"] if image else None

        def defect(kind: str, detail: str, file=file, key=key) -> None:
            report.defects.append(Defect(kind, file, key, detail))

        missing = [k for k in ("id", "image_id", "category_id", "bbox") if k not in entry]
        if missing:
            defect("malformed annotation", f"no '{missing[0]}'")
            continue
        unfit = [k for k in ("id", "image_id", "category_id") if not is_id(entry[k])]
        if unfit:
            defect("malformed annotation", f"{unfit[0]} is {entry[unfit[0]]}, not a number")
            continue
        if key in ids:
            defect("duplicate annotation id", "another annotation has this id")
        ids.add(key)
        if image is None:
            defect("unknown image", f"image id {entry['image_id']} is not listed")
        if entry["category_id"] not in categories:
            defect("unknown category", f"category id {entry['category_id']} is not listed")
        if not is_box(entry["bbox"]):
            defect("malformed box", f"bbox {entry['bbox']} is not four numbers")
            continue
        fault = _box_fault(entry["bbox"], image)
        if fault:
            defect(*fault)
        if entry.get("iscrowd", 0):
            report.crowds += 1
            continue
        same = (entry["image_id"], entry["category_id"], *entry["bbox"])
        if same in seen:
            defect("doubled box", f"the same box and class as annotation {seen[same]}")
        seen.setdefault(same, key)
        if image is not None and entry["category_id"] in categories:
            of_class[categories[entry["category_id"]]] += 1
            per_image[entry["image_id"]] += 1
            area = entry["bbox"][2] * entry["bbox"][3]
            if math.isfinite(area):
                sizes["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1

    report.objects_of_class = dict(of_class)
    report.box_sizes = dict(sizes)
    counts = list(per_image.values())
    report.without_objects = sum(n == 0 for n in counts)
    if counts:
        report.objects_per_image = (min(counts), float(np.median(counts)), max(counts))


def _box_fault(bbox: list, image: dict | None) -> tuple[str, str] | None:
    x, y, w, h = bbox
    if not all(math.isfinite(v) for v in bbox):
        return "non-finite box", f"bbox {bbox}"
    if w < 0 or h < 0:
        return "negative box", f"width {w:g}, height {h:g}"
    if w == 0 or h == 0:
        return "empty box", f"width {w:g}, height {h:g}"
    size = None if image is None else stated_size(image)
    if size is not None:
        width, height = size
        over = max(-x, -y, x + w - width, y + h - height)
        if over > 1:  # annotation tools round; a pixel over is no defect
            return "box outside the image", f"bbox {bbox} is {over:g} pixels outside {width}x{height}"
    return None
