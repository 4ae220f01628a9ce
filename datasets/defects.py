"""Reads a whole data set and reports what it holds and what is wrong with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotation_defects import check_annotations, check_columns
from datasets.coco import read_coco, read_lists, to_coco
from datasets.coco_columns import read_usual
from datasets.copies import copies_of, write_copy
from datasets.data_report import DataReport
from datasets.file_defects import check_files
from datasets.findings import Defect
from datasets.fix import mend
from datasets.list_defects import check_categories, check_entries
from datasets.paths import dataset_paths
from datasets.readers import read_annotations, reader_of
from datasets.suspects import plain_enough
from datasets.values import stated_size
from util.config import DataPaths
from util.errors import UserError
from util.files import make_folder


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


def write_reports(reports: dict[str, DataReport], output: str) -> None:
    """Write the report on each split into one JSON file.

    Raises:
        UserError: its folder cannot be made.
    """
    file = make_folder(Path(output).parent, "output") / Path(output).name
    file.write_text(json.dumps({split: report.to_dict() for split, report in reports.items()}, indent=1))


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
    categories = check_categories(content.get("categories") or [], report)
    images = check_entries(content["images"], report)
    listed = len(report.defects)
    check_files(images, read or content.get("annotations") or [], image_folder, report, exif, split)
    of_files = report.defects[listed:]
    if read is None:
        check_annotations(content.get("annotations"), images, categories, report)
    else:
        check_columns(read, images, categories, report)
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
    categories = check_categories(content.get("categories") or [], report)
    images = check_entries(content["images"], report)
    size_of = {entry["file_name"]: stated_size(entry) for entry in checked.values()}
    for entry in images.values():
        size = size_of.get(entry["file_name"])
        if stated_size(entry) is None and size is not None:
            entry["width"], entry["height"] = size
    check_annotations(content.get("annotations"), images, categories, report)
    return report.defects + of_files
