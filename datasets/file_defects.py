"""What is wrong with image files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import Annotations, ImageEntry
from datasets.checked import all_missing, boxes_of_images
from datasets.data_report import DataReport
from datasets.findings import Defect
from datasets.inspection import Look, SizeMismatch, inspect
from datasets.picture_file import MissingImage
from datasets.values import is_box, is_id, stated_size


def check_files(
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
