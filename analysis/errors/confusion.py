"""Which class is taken for which: the confusion matrix of detections."""

from collections.abc import Sequence

import numpy as np

from analysis.errors.scenes import MATCH_IOU, Scene, iou


def confusion_matrix(scenes: Sequence[Scene], num_classes: int, threshold: float) -> np.ndarray:
    """Objects (rows) against what they were taken for (columns); the last of each is the background.

    In each image the detections whose score reaches the threshold are gone through, the best first, whatever their
    class. Each takes, of the objects that are still free, the one it overlaps most, if IoU >= 0.5 (of two equal
    overlaps its own class), and is counted in the object's row and its own column. Objects that are left are missed:
    column "background". Detections that are left are spurious: row "background"; unless half of them or more lies on a
    crowd of their class, which is neither right nor wrong. So every row but the last sums to the number of objects of
    the class.

    Because classes compete for an object here and do not in AP, the diagonal can hold fewer than AP counts as right.

    Args:
        scenes: images.
        num_classes: C.
        threshold: smallest score that counts.

    Returns:
        `[C + 1, C + 1]` counts.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
    for scene in scenes:
        overlap = iou(scene.boxes, scene.truth_boxes)
        on_crowd = iou(scene.boxes, scene.crowd_boxes, crowd=True) >= MATCH_IOU
        on_crowd &= scene.classes[:, None] == scene.crowd_classes
        free = np.ones(len(scene.truth_classes), dtype=bool)
        for d in np.flatnonzero(scene.scores >= threshold):  # the best come first
            own = scene.classes[d]
            reachable = np.flatnonzero(free & (overlap[d] >= MATCH_IOU))
            if len(reachable):
                taken = max(reachable, key=lambda t: (overlap[d, t], scene.truth_classes[t] == own))
                free[taken] = False
                matrix[scene.truth_classes[taken], own] += 1
            elif not on_crowd[d].any():
                matrix[num_classes, own] += 1
        np.add.at(matrix[:, num_classes], scene.truth_classes[free], 1)
    return matrix


def most_confused(matrix: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes of one class for another: (class, taken for, count), background apart."""
    mistakes = matrix[:-1, :-1].copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, mistakes.shape)
    return [(int(r), int(c), int(mistakes[r, c])) for r, c in zip(rows, columns) if mistakes[r, c]]
