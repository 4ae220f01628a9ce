"""Mends the annotations of a COCO file, change by change. What needs a person's judgement is left as it is."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.annotations import Id
from datasets.faults import IMPOSSIBLE, area_fault, box_fault
from datasets.findings import Finding
from datasets.ids import counterparts, id_order
from datasets.lvis import listed_classes, merge_lists, renumber
from datasets.values import (
    as_area,
    as_box,
    as_flag,
    as_whole,
    is_box,
    is_crowd,
    is_id,
    is_name,
    is_whole,
    stated_size,
    typed,
)
from util.errors import UserError
from util.files import make_folder

Size = tuple[int, int]


class Change(Finding):
    """Something that was changed."""


def copies_of(sources: Mapping[str, Path], fix: str | None, output: str | None = None) -> dict[str, Path]:
    """Where the mended copy of each split goes.

    Args:
        sources: annotation file of each split.
        fix: a JSON file, if there is one split; or a folder for a file by the name of each split. None mends nothing.
        output: the file of the report.

    Raises:
        UserError: several splits and one file; or a source, or the report, would be overwritten.
    """
    if fix is None:
        copies = {}
    elif Path(fix).suffix.lower() != ".json":
        copies = {split: Path(fix) / f"{split}.json" for split in sources}
    elif len(sources) == 1:
        copies = dict.fromkeys(sources, Path(fix))
    else:
        raise UserError(
            f"--fix '{fix}' is one file, but there are two splits; name a folder for train.json and val.json, or one "
            "split alone (--data.train_images and --data.train_annotations, or --data.val_*)"
        )
    targets = [("--fix", copy) for copy in copies.values()] + [("--output", Path(o)) for o in (output,) if o]
    for option, target in targets:
        if any(_same(target, source) for source in sources.values()):
            raise UserError(f"{option} '{target}' would overwrite the annotation file; name another file")
    for copy in copies.values():
        if copy.is_dir():
            raise UserError(f"--fix '{copy}' is a folder; name another file")
        if output and _same(copy, Path(output)):
            raise UserError(f"--fix and --output name the same file '{copy}'")
    return copies


def write_copy(content: dict[str, Any], file: Path, option: str = "fix") -> None:
    """Write the content of a COCO file; until it is whole, there is none by its name. `option` names it in errors."""
    make_folder(file.parent, option)
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(file)


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
        todo = _Annotations(images, known, image_of, category_of, changes)
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


def new_numbers(ids: Iterable[Id]) -> dict[Id, Id]:
    """A number for each id that is text: the one that it says, if it is free; else one above all others.

    Numbers stay as they are. What is numbered above the others keeps the order of the text.
    """
    known = dict.fromkeys(ids)
    numbers: dict[Id, Id] = {value: value for value in known if not isinstance(value, str)}
    used = set(numbers)
    texts = sorted((value for value in known if isinstance(value, str)), key=id_order)
    for text in texts:
        number = as_whole(text)
        if number is not None and number not in used:
            numbers[text] = number
            used.add(number)
    following = max([0, *(int(n) for n in used if not isinstance(n, str))]) + 1
    for text in texts:
        if text not in numbers:
            numbers[text] = following
            following += 1
    return numbers


@dataclass
class _Annotations:
    """What it takes to mend annotations.

    Attributes:
        images: mended entries by their new ids.
        sizes: (width, height) of the images in pixels, by their new ids.
        image_of, category_of: new id of each old one.
        changes: to which is added.
    """

    images: dict[Id, dict]
    sizes: dict[Id, Size]
    image_of: dict[Id, Id]
    category_of: dict[Id, Id]
    changes: list[Change]
    seen: dict[tuple, Any] = field(default_factory=dict)

    def mend(self, entries: list) -> list[dict]:
        """The annotations that can be kept, mended."""
        dicts = [e for e in entries if isinstance(e, dict)]
        meant = {}
        for key, new_of in (("image_id", self.image_of), ("category_id", self.category_of)):
            found = counterparts((e[key] for e in dicts if is_id(e.get(key))), new_of)
            meant[key] = new_of | {used: new_of[listed] for used, listed in found.items()}
        kept = []
        for i, entry in enumerate(entries):
            copy = dict(entry) if isinstance(entry, dict) else None
            if copy is None:
                self.changes.append(Change("malformed annotation removed", None, None, f"entry {i} is no object"))
            elif self._refer(copy, meant) and self._mend_box(copy) and self._is_new(copy):
                kept.append(copy)
        self._number(kept)
        return kept

    def _say(self, entry: dict, kind: str, detail: str) -> None:
        image = self.images.get(entry["image_id"]) if is_id(entry.get("image_id")) else None
        self.changes.append(Change(kind, image["file_name"] if image else None, entry.get("id"), detail))

    def _refer(self, entry: dict, meant: dict[str, dict[Id, Id]]) -> bool:
        """Write the ids of image and class as they are listed; whether they are."""
        for key, new_of in meant.items():
            old = entry.get(key)
            if not is_id(old) or old not in new_of:
                what = "image" if key == "image_id" else "category"
                self._say(entry, f"annotation of an unknown {what} removed", f"{key} {typed(old)}")
                return False
            if new_of[old] != old:
                entry[key] = new_of[old]
                self._say(entry, f"{key} changed", f"{typed(old)} is now {new_of[old]}")
        return True

    def _mend_box(self, entry: dict) -> bool:
        """Make box, area and `iscrowd` numbers, and clip the box to the image; whether anything is left of it."""
        given = entry.get("bbox")
        box = as_box(given)
        if box is None:
            self._say(entry, "malformed box removed", f"bbox {given} is not four numbers")
            return False
        if not is_box(given):
            self._say(entry, "box made numbers", f"bbox {given}")
            entry["bbox"] = box
        size = self.sizes.get(entry["image_id"])
        fault = box_fault(box, size)
        if fault:
            clipped = clip(entry["bbox"], size) if size and fault[0] not in IMPOSSIBLE else None
            if clipped is None or min(clipped[2:]) <= 0:
                self._say(entry, f"{fault[0]} removed", fault[1])
                return False
            self._say(entry, "box clipped", f"{fault[1]}: now {clipped}")
            entry["bbox"] = clipped
        self._mend_area(entry, box)
        crowd = entry.get("iscrowd")
        if isinstance(crowd, str) and as_flag(crowd) is not None:
            entry["iscrowd"] = int(bool(as_flag(crowd)))
            self._say(entry, "iscrowd made a number", f"{typed(crowd)} is now {entry['iscrowd']}")
        return True

    def _mend_area(self, entry: dict, before: list[float]) -> None:
        """Make the area a positive number: that of the box, if it was that, or none, or none that can be."""
        stated, (_, _, w, h) = entry.get("area"), entry["bbox"]
        number, was = as_area(stated), before[2] * before[3]
        if number is not None and not math.isclose(number, was, rel_tol=1e-6) and not area_fault(number, entry["bbox"]):
            area: float = number  # that of a segment
        else:
            area = w * h
        if isinstance(stated, str | bool) or stated is None or not math.isclose(area, as_area(stated) or 0):
            entry["area"] = area
            self._say(entry, "area computed", f"area {typed(stated)} is now {area:.10g}")

    def _is_new(self, entry: dict) -> bool:
        """Whether this is no copy of an earlier object; crowds may be."""
        if is_crowd(entry):
            return True
        same = (entry["image_id"], entry["category_id"], *entry["bbox"])
        if same in self.seen:
            self._say(entry, "doubled box removed", f"the same box and class as annotation {self.seen[same]}")
            return False
        self.seen[same] = entry.get("id")
        return True

    def _number(self, entries: list[dict]) -> None:
        """Make the ids of annotations numbers, and unique."""
        numbers = new_numbers(entry["id"] for entry in entries if is_id(entry.get("id")))
        following = max([0, *(int(n) for n in numbers.values() if not isinstance(n, str))]) + 1
        used: set[Id] = set()
        for entry in entries:
            old = entry.get("id")
            new = numbers[old] if is_id(old) else None
            if new is None or new in used:
                new, following = following, following + 1
            if not is_whole(old) or new != old:
                entry["id"] = new
                kind = "doubled annotation id changed" if is_whole(old) else "annotation id made a number"
                image = self.images[entry["image_id"]]
                self.changes.append(Change(kind, image["file_name"], old, f"{typed(old)} is now {new}"))
            used.add(new)


def clip(box: list, size: Size) -> list:
    """The part of a box [x, y, width, height] on an image of this (width, height), in pixels."""
    x0, y0 = max(box[0], 0), max(box[1], 0)
    return [x0, y0, min(box[0] + box[2], size[0]) - x0, min(box[1] + box[3], size[1]) - y0]


def _same(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by whatever name."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
