"""Precision and recall from matched detections, as pycocotools accumulates them: to the last digit, and much sooner.

All classes are one array, each a run in it. Only detections that found something are looked at one by one: precision
is highest, and recall rises, at them alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.greedy import IOUS, SIZES, Matched, place_in_run

RECALLS = np.linspace(0, 1, 101)


@dataclass
class Tables:
    """What figures are means of; -1 where a class has no objects of a size.

    Attributes:
        precision: `[IoU, recall, class, size, limit]`, the best precision at this recall or above, at `RECALLS`.
        recall: `[IoU, class, size, limit]`, the share of objects that are found.
        limits: largest numbers of detections in an image, rising.
    """

    precision: np.ndarray
    recall: np.ndarray
    limits: list[int]


def accumulate(matched: Matched, limits: Sequence[int], images: np.ndarray | None = None) -> Tables:
    """Precision and recall of every class.

    Args:
        matched: the detections.
        limits: numbers of detections of an image that are looked at; none above that of the matching.
        images: `[I]`, booleans, the images that count; None takes all.
    """
    columns, truth = matched.columns, matched.columns.truth
    num_classes = len(columns.categories)
    chosen = np.ones(len(truth), dtype=bool) if images is None else images[truth.images]
    objects = np.stack([np.bincount(truth.classes[chosen & ~i], minlength=num_classes) for i in matched.ignored])
    shape = (len(SIZES), len(limits), len(IOUS), num_classes)
    precision, recall = np.full((*shape, len(RECALLS)), -1.0), np.full(shape, -1.0)
    needed = [_needed(n) for n in objects]
    for m, limit in enumerate(limits):
        ranking = _Ranking(matched, limit, images)
        for a, (low, high) in enumerate(SIZES.values()):
            areas = columns.found.areas[ranking.rows]
            inside = (areas >= low) & (areas <= high)
            ranking.of_size(inside if columns.neutral is None else inside & ~columns.neutral[ranking.rows])
            for t in range(len(IOUS)):
                curve = ranking.curve(a, t)
                _fill(precision[a, m, t], recall[a, m, t], *curve, objects[a], needed[a])
    return Tables(precision.transpose(2, 4, 3, 0, 1), recall.transpose(2, 3, 0, 1), list(limits))


class _Ranking:
    """All detections class by class, in a class the best first.

    Args:
        matched: the detections.
        limit: those of an image and class that are looked at.
        images: as in `accumulate`.
    """

    def __init__(self, matched: Matched, limit: int, images: np.ndarray | None):
        self.matched, columns = matched, matched.columns
        kept = matched.ranks < limit
        if images is not None:
            kept &= images[columns.found.images[matched.rows]]
        at = np.flatnonzero(kept)
        rows = matched.rows[at]
        order = np.lexsort((-columns.scores[rows], columns.found.classes[rows]))
        self.rows = rows[order]
        self.classes = columns.found.classes[self.rows]
        self.num_classes = len(columns.categories)
        self.starts = np.searchsorted(self.classes, np.arange(self.num_classes))
        position = np.full(len(matched.rows), -1)
        position[at[order]] = np.arange(len(at))
        of_candidates = position[matched.candidates]
        self.candidates = np.argsort(of_candidates)[(of_candidates < 0).sum() :]  # in the order of the ranking
        self.places = of_candidates[self.candidates]

    def of_size(self, inside: np.ndarray) -> None:
        """Count only these, `[N]` booleans, among the detections that find nothing: those of a size, none neutral."""
        self.inside = inside
        self.counted = np.append(0, np.cumsum(inside))  # before each detection

    def curve(self, a: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Class, and precision there or later, of every right detection at one size and IoU, in ranking order."""
        taken = self.matched.objects[a, self.candidates, t]
        hit = taken >= 0
        place, right = self.places[hit], ~self.matched.ignored[a][taken[hit]]
        # A right detection counts whatever its size; one that took an object that does not count never does.
        more = np.append(0, np.cumsum(right.astype(int) - self.inside[place]))
        more_before = more[np.searchsorted(place, self.starts)]  # each class
        place, more = place[right], more[1:][right]
        classes = self.classes[place]
        counted = self.counted[place + 1] + more - (self.counted[self.starts] + more_before)[classes]
        # pycocotools adds the smallest step of floats to the number, which changes 1 alone.
        precision = (place_in_run(classes) + 1.0) / (counted + np.spacing(1))
        # The running maximum from the end of each class: of whole numbers, to which the class adds a larger one.
        values, level = np.unique(precision, return_inverse=True)
        level = level + (self.num_classes - classes) * len(values)
        return classes, values[np.maximum.accumulate(level[::-1])[::-1] % max(len(values), 1)]


def _needed(objects: np.ndarray) -> np.ndarray:
    """`[C, 101]`, how many of a class's objects must be found besides one to reach each of `RECALLS`.

    Whole numbers are tried, because only n / objects itself rounds as recall does.
    """
    total = np.maximum(objects, 1)[:, None]
    needed = np.maximum(np.floor(RECALLS * total).astype(int) - 2, 0)
    for _ in range(4):
        needed += (needed + 1) / total < RECALLS
    return needed


def _fill(
    precision: np.ndarray,
    recall: np.ndarray,
    classes: np.ndarray,
    envelope: np.ndarray,
    objects: np.ndarray,
    needed: np.ndarray,
) -> None:
    """Write the precision `[C, 101]` and the recall `[C]` of the classes that have objects."""
    found = np.bincount(classes, minlength=len(objects))
    index, present = (np.cumsum(found) - found)[:, None] + needed, objects > 0
    padded = np.append(envelope, np.zeros(needed.max(initial=0) + 1))
    reached = np.where(needed < found[:, None], padded[index], 0.0)
    precision[present] = reached[present]
    recall[present] = found[present] / objects[present]
