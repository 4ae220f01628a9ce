"""Precision over recall, and both over the score threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from analysis.errors.scenes import Scene

GRID = np.linspace(0, 1, 101)  # thresholds at which curves are drawn


def precision_recall(run: COCOeval) -> dict[str, np.ndarray]:
    """pycocotools' precision at 101 recalls from 0 to 1.

    Args:
        run: the accumulated evaluation, from `datasets.evaluation.run_cocoeval`.

    Returns:
        `AP50`, `AP75` and `AP` (the mean over its IoU thresholds), each `[C, 101]`. The mean of a row is the class's
        AP50, AP75 or AP. Rows of classes without objects are NaN.
    """
    precision = run.eval["precision"][:, :, :, 0, -1].transpose(0, 2, 1)  # [IoU, class, recall] of all sizes
    # pycocotools writes -1 for all entries of a class without objects.
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


def threshold_curve(scenes: Sequence[Scene], label: int | None = None) -> ThresholdCurve | None:
    """The curve of a class, or of all classes together; None without objects.

    Args:
        scenes: the images.
        label: class index; None takes all classes, and every detection counts alike.
    """
    of = [slice(None) if label is None else s.classes == label for s in scenes]
    objects = sum(len(s.truth_classes) if label is None else int((s.truth_classes == label).sum()) for s in scenes)
    if not objects:
        return None
    scores = np.concatenate([s.scores[o][~s.ignored[o]] for s, o in zip(scenes, of)])
    right = np.concatenate([s.matches[o][~s.ignored[o]] >= 0 for s, o in zip(scenes, of)])
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
