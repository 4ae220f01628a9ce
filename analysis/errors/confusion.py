"""The confusion matrix of detections: which class is taken for which."""

from collections.abc import Sequence

import numpy as np

from analysis.errors.scenes import MATCH_IOU, Scene, iou


def confusion_matrix(scenes: Sequence[Scene], num_classes: int, threshold: float) -> np.ndarray:
    """Objects (rows) and the classes they were taken for (columns); the last row and column are the background.

    In each image the detections whose score reaches the threshold are taken one by one, the best first, whatever their
    class. Each takes the free object that it overlaps most, if IoU >= 0.5; between equal overlaps it prefers its own
    class. It counts in the object's row and its own column. Objects without a detection are missed (column
    "background"), detections without an object are spurious (row "background"). A detection without an object that
    lies by half or more on a crowd of its class counts nowhere, nor does a neutral one. Every row but the last
    therefore sums to the number of objects of the class.

    Here classes compete for an object, in AP they do not. The diagonal can therefore hold fewer detections than AP
    counts as right.

    Args:
        scenes: the images.
        num_classes: number of classes C.
        threshold: the smallest score that counts.

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
            elif not (scene.neutral[d] or on_crowd[d].any()):
                matrix[num_classes, own] += 1
        np.add.at(matrix[:, num_classes], scene.truth_classes[free], 1)
    return matrix


def most_confused(matrix: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes of one class for another, without the background: (class, taken for, count)."""
    mistakes = matrix[:-1, :-1].copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, mistakes.shape)
    return [(int(r), int(c), int(mistakes[r, c])) for r, c in zip(rows, columns) if mistakes[r, c]]
