"""Precision over recall, and both over the score threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.errors.scenes import Scene
from datasets.accumulate import Tables

GRID = np.linspace(0, 1, 101)  # thresholds at which curves are drawn


def precision_recall(tables: Tables) -> dict[str, np.ndarray]:
    """Precision at 101 recalls from 0 to 1.

    Args:
        tables: precision and recall, from `datasets.accumulate.accumulate`.

    Returns:
        `AP50`, `AP75` and `AP` (the mean over its IoU thresholds), each `[C, 101]`. The mean of a row is the class's
        AP50, AP75 or AP. Rows of classes without objects are NaN.
    """
    precision = tables.precision[:, :, :, 0, -1].transpose(0, 2, 1)  # [IoU, class, recall] of all sizes
    # -1 stands for all entries of a class without objects.
    precision = np.where(precision > -1, precision, np.nan)
    return {"AP50": precision[0], "AP75": precision[5], "AP": precision.mean(0)}


@dataclass
class OperatingPoint:
    """Precision, recall and F1 at IoU 0.5 with one score threshold.

    Attributes:
        threshold: the smallest score that is kept.
        precision: the share of right detections among those kept.
        recall: the share of objects that are found.
        f1: the harmonic mean of precision and recall.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass
class ThresholdCurve:
    """Precision, recall and F1 for a choice of score thresholds.

    Attributes:
        precision: `[101]`, at the thresholds of `GRID`; NaN where no detection is kept.
        recall: `[101]`, at the same thresholds.
        f1: `[101]`, at the same thresholds.
        best: the point with the largest F1 over all scores, with the higher threshold of two equal ones; None if no
            detection is right.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best: OperatingPoint | None


def threshold_curves(scenes: Sequence[Scene], num_classes: int) -> list[ThresholdCurve | None]:
    """The curve of each class alone; None for a class without objects.

    Args:
        scenes: the images.
        num_classes: number of classes C.
    """
    objects = np.bincount(_joined([s.truth_classes for s in scenes], int), minlength=num_classes)
    classes, scores, right = _counted(scenes)
    order = np.argsort(classes, kind="stable")
    parts = np.split(order, np.searchsorted(classes[order], np.arange(1, num_classes)))
    return [_curve_of(scores[part], right[part], int(n)) for part, n in zip(parts, objects)]


def threshold_curve(scenes: Sequence[Scene]) -> ThresholdCurve | None:
    """The curve of all classes together, in which every detection counts alike; None without objects."""
    _, scores, right = _counted(scenes)
    return _curve_of(scores, right, sum(len(s.truth_classes) for s in scenes))


def _counted(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes and scores of all detections but those on crowds, and whether each is right."""
    counts = ~_joined([s.ignored for s in scenes], bool)
    classes, matches = _joined([s.classes for s in scenes], int), _joined([s.matches for s in scenes], int)
    return classes[counts], _joined([s.scores for s in scenes], float)[counts], matches[counts] >= 0


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype)


def _curve_of(scores: np.ndarray, right: np.ndarray, objects: int) -> ThresholdCurve | None:
    """The curve of `[N]` detections, given whether each is right, and of the number of objects; None without any."""
    if not objects:
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.append(0, np.cumsum(right[order]))

    def at(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of the `kept` best detections."""
        precision = np.divide(hits[kept], kept, out=np.full(len(kept), np.nan), where=kept > 0)
        return precision, hits[kept] / objects, 2 * hits[kept] / (kept + objects)

    # Count the detections that reach each threshold; equal scores are kept together.
    grid = np.searchsorted(-scores, -GRID, side="right")
    distinct = np.unique(np.searchsorted(-scores, -scores, side="right"))
    best = None
    if hits[-1]:
        precision, recall, f1 = at(distinct)
        i = int(f1.argmax())
        best = OperatingPoint(*(float(v) for v in (scores[distinct[i] - 1], precision[i], recall[i], f1[i])))
    return ThresholdCurve(*at(grid), best)
