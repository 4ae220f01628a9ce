"""One scored image: its objects beside what was detected, matched as COCO matches at IoU 0.5."""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

from datasets.annotations import Annotations, ImageEntry

MATCH_IOU = 0.5


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
        ignored: `[D]`, whether a detection lies on a crowd, which is neither right nor wrong.
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

    def found(self, threshold: float = -np.inf) -> np.ndarray:
        """`[T]`, which objects were found with at least this score.

        COCO matches the best detection first, so that leaving out low scores changes no other match.
        """
        found = np.zeros(len(self.truth_classes), dtype=bool)
        found[self.matches[(self.matches >= 0) & (self.scores >= threshold)]] = True
        return found

    def wrong(self, threshold: float = -np.inf) -> np.ndarray:
        """`[D]`, which detections of at least this score found nothing, crowds apart."""
        return (self.matches < 0) & ~self.ignored & (self.scores >= threshold)


def scenes_of(run: COCOeval, annotations: Annotations) -> list[Scene]:
    """The images of an evaluation in its order.

    Args:
        run: accumulated, see `datasets.evaluation.run_cocoeval`.
        annotations: what it was made of.
    """
    entry_of = {image.id: image for image in annotations.images}
    images, index = run.params.imgIds, {category: k for k, category in enumerate(run.params.catIds)}
    at = int(np.argmin(np.abs(run.params.iouThrs - MATCH_IOU)))
    # pycocotools lists class by class, in it area by area (all sizes come first), in it image by image.
    of_class = len(run.params.areaRng) * len(images)
    scenes = []
    for i, image in enumerate(images):
        objects = [a for a in run.cocoGt.imgToAnns[image] if a["category_id"] in index]
        truth, crowds = ([a for a in objects if bool(a["iscrowd"]) is crowd] for crowd in (False, True))
        position = {a["id"]: j for j, a in enumerate(truth)}
        ids, matches, ignored = [], [], []
        for k in range(len(index)):
            entry = run.evalImgs[k * of_class + i]
            if entry is not None:
                ids += entry["dtIds"]
                matches += [position.get(int(m), -1) for m in entry["dtMatches"][at]]
                ignored += [bool(v) for v in entry["dtIgnore"][at]]
        detections = [run.cocoDt.anns[n] for n in ids]
        scores = np.array([d["score"] for d in detections], dtype=float)
        order = np.argsort(-scores, kind="stable")  # at equal scores as pycocotools has them
        scenes.append(
            Scene(
                entry_of[run.cocoGt.imgs[image]["original_id"]],
                _boxes(truth),
                _classes(truth, index),
                _boxes(crowds),
                _classes(crowds, index),
                _boxes(detections)[order],
                _classes(detections, index)[order],
                scores[order],
                np.array(matches, dtype=int)[order],
                np.array(ignored, dtype=bool)[order],
            )
        )
    return scenes


def iou(boxes: np.ndarray, others: np.ndarray, crowd: bool = False) -> np.ndarray:
    """`[N, M]` overlaps of xywh boxes, by pycocotools; with crowds, the share of each of `boxes` that is covered."""
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return np.asarray(mask.iou(boxes, others, [int(crowd)] * len(others)))


def _boxes(entries: list[dict]) -> np.ndarray:
    return np.array([e["bbox"] for e in entries], dtype=float).reshape(-1, 4)


def _classes(entries: list[dict], index: dict) -> np.ndarray:
    return np.array([index[e["category_id"]] for e in entries], dtype=int)
