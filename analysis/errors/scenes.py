"""One scored image: its objects beside what was detected, matched as COCO matches at IoU 0.5."""

from dataclasses import dataclass

import numpy as np

from datasets.annotations import ImageEntry
from datasets.greedy import IOUS, Matched, overlaps

MATCH_IOU = IOUS[0]


@dataclass
class Scene:
    """Objects and detections of one image; classes are indices in the order of category ids.

    Attributes:
        image: as the annotation file lists it.
        truth_boxes: `[T, 4]`, xywh in pixels, without crowds.
        truth_classes: `[T]`.
        crowd_boxes: `[N, 4]`, xywh in pixels.
        crowd_classes: `[N]`.
        boxes: `[D, 4]`, xywh in pixels, best first; those beyond the limit of detections are left out.
        classes: `[D]`.
        scores: `[D]`.
        matches: `[D]`, the object that a detection found, -1 for none.
        ignored: `[D]`, whether a detection is neither right nor wrong: on a crowd, or neutral without an object.
        neutral: `[D]`, whether a detection is not wrong for finding nothing: one of a class of which LVIS's file says
            that the image has more objects than are listed.
    """

    image: ImageEntry
    truth_boxes: np.ndarray
    truth_classes: np.ndarray
    crowd_boxes: np.ndarray
    crowd_classes: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    matches: np.ndarray
    ignored: np.ndarray
    neutral: np.ndarray

    def found(self, threshold: float = -np.inf) -> np.ndarray:
        """`[T]`, which objects were found with at least this score.

        COCO matches the best detection first, so that leaving out low scores changes no other match.
        """
        found = np.zeros(len(self.truth_classes), dtype=bool)
        found[self.matches[(self.matches >= 0) & (self.scores >= threshold)]] = True
        return found

    def wrong(self, threshold: float = -np.inf) -> np.ndarray:
        """`[D]`, which detections of at least this score found nothing, and are wrong for it."""
        return (self.matches < 0) & ~self.ignored & (self.scores >= threshold)


def scenes_of(matched: Matched) -> list[Scene]:
    """The images of a matching in its order.

    Args:
        matched: see `datasets.evaluation.match_detections`.
    """
    columns = matched.columns
    truth, found, crowds = columns.truth, columns.found, columns.crowds
    took = np.full(len(matched.rows), -1)
    took[matched.candidates] = matched.objects[0, :, 0]  # all sizes, the smallest IoU
    rows = matched.rows
    # At equal scores class by class, as pycocotools has them.
    best_first = np.lexsort((-columns.scores[rows], found.images[rows]))
    rows, took = rows[best_first], took[best_first]
    ignored = (took >= 0) & np.append(crowds, False)[took]
    neutral = np.zeros(len(rows), dtype=bool) if columns.neutral is None else columns.neutral[rows]
    ignored |= (took < 0) & neutral

    by_image = np.argsort(truth.images, kind="stable")
    objects, crowded = by_image[~crowds[by_image]], by_image[crowds[by_image]]
    every = np.arange(len(columns.images) + 1)
    of_objects, of_crowds, of_found = (
        np.searchsorted(images, every) for images in (truth.images[objects], truth.images[crowded], found.images[rows])
    )
    place = np.full(len(truth) + 1, -1)  # of an object in its image; the last entry is that of no object
    place[objects] = np.arange(len(objects)) - of_objects[truth.images[objects]]
    matches = place[took]
    scenes = []
    for i, image in enumerate(columns.images):
        of_truth, of_crowd = (
            part[starts[i] : starts[i + 1]] for part, starts in ((objects, of_objects), (crowded, of_crowds))
        )
        of_image = slice(of_found[i], of_found[i + 1])
        row = rows[of_image]
        scenes.append(
            Scene(
                image,
                truth.boxes[of_truth],
                truth.classes[of_truth],
                truth.boxes[of_crowd],
                truth.classes[of_crowd],
                found.boxes[row],
                found.classes[row],
                columns.scores[row],
                matches[of_image],
                ignored[of_image],
                neutral[of_image],
            )
        )
    return scenes


def iou(boxes: np.ndarray, others: np.ndarray, crowd: bool = False) -> np.ndarray:
    """`[N, M]` overlaps of xywh boxes; with crowds, the share of each of `boxes` that is covered."""
    shape = len(boxes), len(others)
    pairs = np.repeat(boxes, shape[1], axis=0), np.tile(others, (shape[0], 1))
    return overlaps(*pairs, np.full(shape[0] * shape[1], crowd)).reshape(shape)
