"""Data of another format as one COCO file: what the reader of the format says, written down."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets.annotations import Annotations
from datasets.checked import boxes_of_images
from datasets.coco import read_coco, to_coco
from datasets.copies import write_copy
from datasets.image_table import ImageTable
from datasets.inspection import inspect
from datasets.lvis import listed_classes, renumber
from datasets.new_ids import new_numbers
from datasets.readers import Reader, reader_of
from datasets.values import as_text
from datasets.voc import read_voc
from datasets.yolo import read_yolo
from util.command_config import ConvertDataConfig
from util.errors import UserError


def convert(options: ConvertDataConfig, source: str, output: str) -> str:
    """Write what is read in `source` to the JSON file `output`.

    Boxes, classes and order are those of the reader; ids of images and classes stay where they are whole numbers.
    Sizes that are not stated are read from the pictures. Nothing is clipped or taken out: that is check-data --fix.

    Returns:
        What to tell: counts, and a sentence on each kind of value that was left out or read as something else.

    Raises:
        UserError: the source cannot be read, or would be overwritten.
    """
    path, file = Path(source), Path(output)
    if not path.exists():
        raise UserError(f"--input '{source}' is not there")
    if file.suffix.lower() != ".json" or file.is_dir():
        raise UserError(f"--output '{output}' must be a JSON file, such as train.json")
    if file.exists() and path.is_file() and file.samefile(path):
        raise UserError(f"--output '{output}' would overwrite the input; name another file")
    annotations = _reader(options, path)(path)
    if options.images and any(image.size is None for image in annotations.images):
        annotations = _with_sizes(annotations, Path(options.images))
    content = to_coco(annotations)
    _number(content)
    write_copy(content, file, "output")
    return _summary(annotations, source, output)


def _reader(options: ConvertDataConfig, path: Path) -> Reader:
    images, classes = (Path(given) if given else None for given in (options.images, options.classes))
    if options.from_ == "auto":
        found = reader_of(path, images)
        chosen = getattr(found, "func", found)  # without the image folder
    else:
        chosen = {"voc": read_voc, "yolo": read_yolo, "coco": read_coco}[options.from_]
    _refuse_unused(options, chosen)
    if chosen is read_voc:
        return partial(read_voc, images=images, corners=options.voc_corners, classes=classes)
    if chosen is read_yolo:
        return partial(read_yolo, images=images, split=options.split, classes=classes)
    return chosen


def _refuse_unused(options: ConvertDataConfig, reader: Reader) -> None:
    """Refuse what another format is read by, rather than pass over it."""
    unused = (
        (options.classes and reader not in (read_voc, read_yolo), "--classes is for Pascal VOC and YOLO"),
        (options.split != ConvertDataConfig.split and reader is not read_yolo, "--split is for YOLO"),
        (options.voc_corners != "pixels" and reader is not read_voc, "--voc_corners is for Pascal VOC"),
    )
    for is_so, said in unused:
        if is_so:
            raise UserError(f"{said}, but '{options.input}' is read as another format; leave the option out")


def _with_sizes(annotations: Annotations, folder: Path) -> Annotations:
    """The annotations with the sizes of pictures, as they are annotated, where none are stated."""
    if not folder.is_dir():
        raise UserError(f"no image folder '{folder}'")
    looks = inspect(folder, annotations.images, partial(boxes_of_images, annotations), description="reading images")
    images = [
        replace(look.entry, width=look.size[0], height=look.size[1])
        if look.entry.size is None and look.size
        else look.entry
        for look in looks
    ]
    unread = [look.entry.file_name for look in looks if look.entry.size is None and look.size is None]
    remarks = list(annotations.remarks)
    if unread:
        more = ", ..." if len(unread) > 3 else ""
        remarks.append(
            f"'{folder}': {len(unread)} pictures cannot be read, so that their sizes stay unknown "
            f"({', '.join(unread[:3])}{more})"
        )
    return replace(annotations, images=ImageTable.of(images), remarks=remarks)


def _number(content: dict) -> None:
    """Make ids whole numbers where they are text, and those of annotations unique, in the content of a COCO file."""
    objects = content.get("annotations", [])
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        listed = [entry["id"] for entry in content[part]]
        named = listed_classes(content["images"]) if part == "categories" else []
        number_of = new_numbers(listed + [entry[key] for entry in objects] + named)
        for entry in content[part]:
            entry["id"] = number_of[entry["id"]]
        for image in content["images"] if named else ():
            renumber(image, number_of)
        for entry in objects:
            entry[key] = number_of[entry[key]]
    ids = [entry["id"] for entry in objects]
    if len(set(ids)) < len(ids) or any(isinstance(number, str) for number in ids):
        for number, entry in enumerate(objects, 1):
            entry["id"] = number


def _not_finite(annotations: Annotations, output: str) -> list[str]:
    """A remark on numbers that JSON has no form for, if there are any."""
    count = int((~np.isfinite(annotations.boxes).all(-1)).sum())
    if not count:
        return []
    return [
        f"'{output}': {count} boxes hold NaN or Infinity, which strict readers of JSON refuse; "
        "check-data --fix removes such boxes"
    ]


def _summary(annotations: Annotations, source: str, output: str) -> str:
    names = [category.name for category in annotations.categories]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    with_objects = {image for image, crowd in zip(annotations.image_ids, annotations.crowds) if not crowd}
    empty = len(annotations.images) - len(with_objects)
    crowds = int(annotations.crowds.sum())
    lines = [
        f"{source}",
        f"  images        {len(annotations.images)} ({empty} without objects)",
        f"  annotations   {len(annotations)} ({crowds} crowds)",
        f"  classes       {len(names)}: {shown}",
        *(f"  {remark}" for remark in [*annotations.remarks, *_not_finite(annotations, output)]),
        f"written to {output}; check-data looks at every box and picture of it",
    ]
    return as_text("\n".join(lines))
