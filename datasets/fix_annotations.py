"""Mends annotations: what they refer to, their boxes, areas, flags and ids."""

import math
from dataclasses import dataclass, field
from typing import Any

from datasets.annotations import Id
from datasets.faults import IMPOSSIBLE, area_fault, box_fault
from datasets.findings import Change
from datasets.ids import counterparts
from datasets.new_ids import new_numbers
from datasets.values import as_area, as_box, as_flag, is_box, is_crowd, is_id, is_whole, typed

Size = tuple[int, int]


@dataclass
class AnnotationFixes:
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
