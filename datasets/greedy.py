"""COCO's matching of detections with objects, for all images, classes, overlaps and sizes of objects at once.

Within an image and a class the best detection goes first. It takes the free object that it overlaps most, if it
overlaps it enough; objects that do not count (crowds, and those of another size) only if no other is left. Of equal
scores the first in the file goes first, of equal overlaps the last object is taken. A crowd can be taken many times.
This is pycocotools' rule to the last comparison. There it is three nested Python loops; here step n treats the n-th
detection of every image and class, at every overlap, as one array.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets.columns import LARGEST_AREA, Columns

IOUS = np.linspace(0.5, 0.95, 10)  # an overlap that equals a threshold is enough
SIZES = {
    "all": (0.0, LARGEST_AREA),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, LARGEST_AREA),
}
PAIRS_AT_ONCE = 2**20  # of a detection and an object; bounds the memory


@dataclass
class Matched:
    """Which detection found which object.

    Attributes:
        columns: what was matched.
        rows: `[D]`, the detections that are looked at, as rows of `columns.found`: class by class, in a class image by
            image, in an image the best first.
        ranks: `[D]`, 0 for the best detection of its image and class, and so on.
        candidates: `[U]`, positions in `rows` of the detections that overlap any object of their class enough.
        objects: `[A, U, T]`, row of `columns.truth` that each of them took, for each size and each of `IOUS`; -1 for
            none.
        ignored: `[A, T]`, the objects that do not count, for each size.
        max_detections: of an image, and of each of its classes; those beyond are left out.
    """

    columns: Columns
    rows: np.ndarray
    ranks: np.ndarray
    candidates: np.ndarray
    objects: np.ndarray
    ignored: np.ndarray
    max_detections: int


def match(columns: Columns, max_detections: int) -> Matched:
    """Match all detections of all images.

    Args:
        columns: objects and detections.
        max_detections: detections of a class in an image that are looked at, best first.
    """
    truth, found, images = columns.truth, columns.found, len(columns.images)
    group = found.classes * images + found.images
    rows = np.lexsort((-columns.scores, group))
    ranks = place_in_run(group[rows])
    rows, ranks = rows[ranks < max_detections], ranks[ranks < max_detections]
    group, object_group = group[rows], truth.classes * images + truth.images

    pairs = list(_overlapping(columns, rows, group, object_group))
    detection, taken_object, overlap = (np.concatenate(column) for column in zip(*pairs))
    candidates = np.unique(detection)
    low, high = np.array(list(SIZES.values())).T[:, :, None]
    ignored = columns.crowds | (truth.areas < low) | (truth.areas > high)
    of_candidates = group[candidates]
    objects = [_take(detection, taken_object, overlap, of_candidates, columns.crowds, i) for i in ignored]
    return Matched(columns, rows, ranks, candidates, np.stack(objects), ignored, max_detections)


def place_in_run(values: np.ndarray) -> np.ndarray:
    """`[N]`, 0, 1, 2, ... within each run of equal values."""
    at = np.arange(len(values))
    starts = np.append(True, values[1:] != values[:-1])[: len(values)]
    return at - np.maximum.accumulate(np.where(starts, at, 0))


def overlaps(boxes: np.ndarray, others: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """`[N]`, IoU of boxes and others row by row, [x, y, w, h]; where the other is a crowd, the share that it covers."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    sides = np.minimum(boxes[:, 2:] + boxes[:, :2], others[:, 2:] + others[:, :2]) - low
    touching = (sides > 0).all(1)
    with np.errstate(over="ignore", invalid="ignore"):  # areas beyond the range of numbers
        inside, own, other = (b[:, 0] * b[:, 1] for b in (sides, boxes[:, 2:], others[:, 2:]))
        union = np.where(crowds, own, own + other - inside)
        return np.divide(inside, union, out=np.zeros(len(boxes)), where=touching)


def _overlapping(
    columns: Columns, rows: np.ndarray, group: np.ndarray, object_group: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs that overlap enough to match: position in `rows`, row of the truth, overlap; detection by detection."""
    order = np.argsort(object_group, kind="stable")
    first, end = (np.searchsorted(object_group[order], group, side) for side in ("left", "right"))
    counts = end - first
    ends = np.cumsum(counts)
    begin, total = 0, int(ends[-1]) if len(ends) else 0
    yield np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0)
    while begin < len(rows) and total > (done := ends[begin] - counts[begin]):
        stop = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, "right")))
        count = counts[begin:stop]
        detection = np.repeat(np.arange(begin, stop), count)
        of_truth = order[np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count) + first[detection]]
        overlap = overlaps(
            columns.found.boxes[rows[detection]], columns.truth.boxes[of_truth], columns.crowds[of_truth]
        )
        enough = overlap >= IOUS[0]
        yield detection[enough], of_truth[enough], overlap[enough]
        begin = stop


def _take(
    detection: np.ndarray,
    of_truth: np.ndarray,
    overlap: np.ndarray,
    group: np.ndarray,
    crowds: np.ndarray,
    ignored: np.ndarray,
) -> np.ndarray:
    """`[U, T]`, the object that each candidate takes at each of `IOUS`; -1 for none.

    Args:
        detection: `[P]`, the candidate of each pair, rising.
        of_truth: `[P]`, its object.
        overlap: `[P]`, of the two.
        group: `[U]`, image and class of each candidate.
        crowds: `[T]`, objects that can be taken many times.
        ignored: `[T]`, objects that are taken only if no other is left.
    """
    # What each would take first, second, ... if all were free; of equals the last in the file.
    preferred = np.lexsort((-of_truth, -overlap, ignored[of_truth], detection))
    of_truth, enough = of_truth[preferred], overlap[preferred, None] >= IOUS
    choices = np.unique(detection, return_counts=True)[1]
    start = np.cumsum(choices) - choices
    took = np.full((len(group), len(IOUS)), -1)
    free = np.ones((len(crowds), len(IOUS)), dtype=bool)
    turns = place_in_run(group)  # the best candidate of each image and class first
    order = np.argsort(turns, kind="stable")
    for turn in np.split(order, np.cumsum(np.bincount(turns))[:-1]) if len(order) else []:
        for choice in range(choices[turn].max()):
            of_turn = turn[choices[turn] > choice]
            pair = start[of_turn] + choice
            wanted = of_truth[pair]
            takes = enough[pair] & (took[of_turn] < 0) & free[wanted]
            took[of_turn] = np.where(takes, wanted[:, None], took[of_turn])
            free[wanted] &= ~takes | crowds[wanted, None]
    return took
