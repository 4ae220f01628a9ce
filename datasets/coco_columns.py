"""Reads a COCO file straight into columns where all of it is as most tools write it.

What is usual is decoded by types, a part at a time, and all other keys (segmentations above all) are passed over
without becoming objects. Anything that is not, down to an id written 7.0, is left to `datasets.coco`, which reads
every value by itself and names the entry in its errors; so it is never decided here that a file is wrong.
"""

import codecs
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from datasets.annotations import Annotations, CategoryEntry
from datasets.areas import remark_on_areas
from datasets.id_column import IdColumn
from datasets.image_table import UNKNOWN, ImageTable
from datasets.lvis import end_of
from datasets.lvis_columns import ListColumns
from datasets.texts import Texts
from datasets.values import LARGEST_SIDE

AT_ONCE = 10_000  # entries that are Python objects at one time
ABSENT = msgspec.Raw()


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str | msgspec.UnsetType = msgspec.UNSET
    width: int | None = None
    height: int | None = None
    coco_url: msgspec.Raw = ABSENT  # LVIS, in the place of a file_name
    neg_category_ids: list[int] | None = None  # LVIS: not every class was looked for
    not_exhaustive_category_ids: list[int] | None = None


class _Object(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int = 0
    ignore: int = 0


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str
    frequency: str | None = None  # LVIS


class _File(msgspec.Struct, gc=False):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[_Category]


def read_usual(path: Path) -> Annotations | None:
    """What a COCO file says, if all of it is as usual; else None.

    It is then what `datasets.coco.from_coco` makes of the same file. The file may be missing, or be anything.
    """
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError:
        return None
    try:
        # What is passed over is checked to be JSON, but not to be UTF-8.
        if not data.isascii():
            data.decode()
        with collector_off():
            file = msgspec.json.decode(data, type=_File)
            return _annotations(file, path)
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None


@contextmanager
def collector_off() -> Iterator[None]:
    """No search for reference cycles while many objects are made that have none: it would take half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _annotations(file: _File, path: Path) -> Annotations | None:
    classes = file.categories
    if not (file.images and file.annotations and classes):
        return None
    listed, objects = _images(file.images), _objects(file.annotations)
    if listed is None or objects is None or len({c.id for c in classes}) < len(classes):
        return None
    images, lists = listed
    federated, of_lists = lists.federated(images.ids, [(c.id, c.frequency) for c in classes], path)
    ids, image_ids, category_ids, boxes, stated, crowds = objects
    unfit = int((stated <= 0).sum())  # NaN, where none is stated, is not
    with np.errstate(over="ignore", invalid="ignore"):  # of impossible boxes
        areas = np.where(stated > 0, stated, boxes[:, 2] * boxes[:, 3])
    return Annotations(
        path,
        [CategoryEntry(c.id, c.name) for c in classes],
        images,
        IdColumn(ids),
        IdColumn(image_ids),
        IdColumn(category_ids),
        boxes,
        areas,
        crowds,
        remarks=([remark_on_areas(unfit, len(areas), path)] if unfit else []) + of_lists,
        federated=federated,
    )


def _images(entries: list[msgspec.Raw]) -> tuple[ImageTable, ListColumns] | None:
    """The images, and what LVIS says of them; None if one is unusual, or two have one id."""
    decode, names, parts, lists = msgspec.json.Decoder(_Image).decode, [], [], ListColumns()
    for first in range(0, len(entries), AT_ONCE):
        some = [decode(entry) for entry in entries[first : first + AT_ONCE]]
        names += [_name(image) for image in some]
        lists.add([i.neg_category_ids for i in some], [i.not_exhaustive_category_ids for i in some])
        sides = [UNKNOWN if s is None else s for image in some for s in (image.width, image.height)]
        of_parts = np.fromiter(sides, np.int64, 2 * len(some)).reshape(-1, 2)
        unknown = sum(image.width is None and image.height is None for image in some)
        if np.all((of_parts > 0) & (of_parts < LARGEST_SIDE), axis=1).sum() + unknown < len(some):
            return None
        parts.append((_numbers(some, "id"), of_parts.astype(np.int32)))
    numbers, sides_of_all = map(np.concatenate, zip(*parts))
    if len(np.unique(numbers)) < len(numbers):
        return None
    return ImageTable(IdColumn(numbers), Texts.of(names), sides_of_all), lists


def _name(image: _Image) -> str:
    """The file name of an image.

    Raises:
        msgspec.MsgspecError: it has none, nor an address.
    """
    named = image.file_name
    return end_of(msgspec.json.decode(image.coco_url, type=str)) if isinstance(named, msgspec.UnsetType) else named


def _objects(entries: list[msgspec.Raw]) -> Sequence[np.ndarray] | None:
    """Ids, images, classes, boxes, areas (NaN where none is stated) and crowds; None if one is unusual."""
    decode, parts = msgspec.json.Decoder(_Object).decode, []
    for first in range(0, len(entries), AT_ONCE):
        some = [decode(entry) for entry in entries[first : first + AT_ONCE]]
        crowds = _numbers(some, "iscrowd")
        if not np.isin(crowds, (0, 1)).all() or any(one.ignore for one in some):
            return None
        boxes = np.fromiter(chain.from_iterable(map(attrgetter("bbox"), some)), np.float64, 4 * len(some))
        areas = [math.nan if one.area is None else one.area for one in some]
        ids = (_numbers(some, key) for key in ("id", "image_id", "category_id"))
        parts.append((*ids, boxes.reshape(-1, 4), np.array(areas), crowds.astype(bool)))
    return [np.concatenate(columns) for columns in zip(*parts)]


def _numbers(entries: Sequence[Any], key: str) -> np.ndarray:
    return np.fromiter(map(attrgetter(key), entries), np.int64, len(entries))
