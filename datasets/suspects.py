"""Which annotations of millions something may be wrong with, so that only those are looked at one by one."""

from collections.abc import Iterator

import numpy as np

from datasets.annotations import Annotations
from datasets.doubles import rows_alike
from datasets.faults import ROUNDING
from datasets.id_column import IdColumn


def plain_enough(read: Annotations) -> bool:
    """Whether columns say as much as the entries of the file did.

    Ids that are text may stand for numbers. Of an area that was replaced, nothing is known but the remark.
    """
    columns = (read.ids, read.image_ids, read.category_ids, read.images.ids)
    numbers = all(column.numbers is not None for column in columns) and all(type(c.id) is int for c in read.categories)
    return numbers and read.annotated and not read.remarks and bool(np.isfinite(read.areas).all())


def suspects(read: Annotations, sizes: np.ndarray) -> np.ndarray:
    """Rising rows of objects among which are all that have a fault, and all that are equal to one of them.

    Args:
        read: what `plain_enough` has passed.
        sizes: `[I, 2]`, (width, height) of each image in pixels; infinite where it is not known.
    """
    boxes, objects = read.boxes, np.flatnonzero(~read.crowds)
    limits = np.append(sizes, [[np.inf, np.inf]], 0)[read.image_at]  # the last is of images that are not listed
    with np.errstate(over="ignore", invalid="ignore"):
        ends = boxes[:, :2] + boxes[:, 2:]
        outside = np.concatenate([-boxes[:, :2], ends - limits], 1).max(1) > ROUNDING
        outside |= ((boxes[:, :2] >= limits) | (ends <= 0)).any(1)
        too_large = read.areas > (boxes[:, 2] + 2) * (boxes[:, 3] + 2)
    odd = outside | too_large | ~np.isfinite(boxes).all(1) | (boxes[:, 2:] <= 0).any(1)
    odd |= (read.image_at < 0) | (read.class_at < 0)
    odd[rows_alike([_numbers(read.ids)])] = True
    of = [_numbers(column)[objects] for column in (read.image_ids, read.category_ids)]
    odd[objects[rows_alike([*of, *boxes[objects].T])]] = True
    return np.flatnonzero(odd)


def entries_of(read: Annotations, rows: np.ndarray) -> Iterator[dict]:
    """These objects as entries of a COCO file."""
    for row in rows.tolist():
        yield {
            "id": read.ids[row],
            "image_id": read.image_ids[row],
            "category_id": read.category_ids[row],
            "bbox": read.boxes[row].tolist(),
            "area": float(read.areas[row]),
            "iscrowd": int(read.crowds[row]),
        }


def _numbers(ids: IdColumn) -> np.ndarray:
    assert ids.numbers is not None  # of `plain_enough`
    return ids.numbers
