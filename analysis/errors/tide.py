"""What costs AP: every wrong detection and every object not found gets one of six types (TIDE, arXiv 2008.08115).

Section 2.2 of the paper defines the types, 2.3 what fixing one of them means. AP is that at IoU 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.errors.scenes import MATCH_IOU, Scene, iou

BACKGROUND_IOU = 0.1  # less overlap than this with every object is background
TYPES = {
    "classification": "on an object, but with the wrong class",
    "localisation": "right class, but overlaps its object too little",
    "both": "wrong class, and overlaps the object too little",
    "duplicate": "on an object that a better-scored detection has found",
    "background": "on no object at all",
    "missed": "object that nothing found, and no error of the first two types is on",
}
CORRECT, IGNORED = "correct", "ignored"


@dataclass
class Verdict:
    """What became of everything in one image.

    Attributes:
        kinds: `[D]`, for each detection `correct`, `ignored` (on a crowd) or one of the first five of `TYPES`.
        targets: `[D]`, the object that a classification or localisation error points at, -1 for all others.
        missed: `[T]`, whether an object is of the type `missed`.
    """

    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray


@dataclass
class Losses:
    """How much AP50 each error type costs.

    Attributes:
        ap50: as it is, in [0, 1]; equals pycocotools'. None without objects.
        counts: `[C]` for each type, by class: the detection's, or the missed object's.
        gains: for each type, what AP50 would gain if only this type were mended. None without objects.
        unfound: objects that no detection matched, whichever the reason.
        false_positives: gain if every wrong detection were removed.
        false_negatives: gain if every object that was not found were removed.
    """

    ap50: float | None
    counts: dict[str, np.ndarray]
    gains: dict[str, float | None]
    unfound: int
    false_positives: float | None
    false_negatives: float | None

    def rows(self) -> list[tuple[str, int, float | None]]:
        """Name, count and gain of each type; then those of all wrong detections and of all objects not found."""
        totals = {name: int(count.sum()) for name, count in self.counts.items()}
        wrong = sum(totals.values()) - totals["missed"]
        return [
            *((name, totals[name], self.gains[name]) for name in TYPES),
            ("all false positives", wrong, self.false_positives),
            ("all false negatives", self.unfound, self.false_negatives),
        ]


def judge(scene: Scene) -> Verdict:
    """The type of every error in an image.

    Types can overlap; as in the authors' figures, localisation goes before classification, that before duplicate.
    An overlap that equals a threshold belongs to the side above it.
    """
    overlap = iou(scene.boxes, scene.truth_boxes)
    same = scene.classes[:, None] == scene.truth_classes
    own, other = _best(np.where(same, overlap, 0)), _best(np.where(same, 0, overlap))
    wrong = scene.wrong()
    kinds = np.full(len(scene.classes), CORRECT, dtype=object)
    kinds[scene.ignored] = IGNORED
    kinds[wrong] = np.select(
        [
            (own.value >= BACKGROUND_IOU) & (own.value < MATCH_IOU),
            other.value >= MATCH_IOU,
            own.value >= MATCH_IOU,  # else it would have matched
            other.value < BACKGROUND_IOU,
        ],
        ["localisation", "classification", "duplicate", "background"],
        "both",
    )[wrong]
    targets = np.full(len(scene.classes), -1)
    for kind, best in (("localisation", own), ("classification", other)):
        targets[kinds == kind] = best.index[kinds == kind]
    missed = ~scene.found()
    missed[targets[targets >= 0]] = False
    return Verdict(kinds, targets, missed)


def losses(scenes: Sequence[Scene], verdicts: Sequence[Verdict], num_classes: int) -> Losses:
    """Count the errors of all images and mend each type alone.

    Mending, as the paper has it: a wrong class is corrected and a loose box made to fit, which makes a detection
    right unless its object is found already, by another or by a better-scored one that was mended likewise: then it
    is removed. What is both, duplicate or background is removed. A missed object is taken out of the ground truth;
    a class that has no other leaves the mean, as in COCO, and if none stays nothing is lost (AP 1).

    Args:
        scenes: all scored images, in the order in which pycocotools has them.
        verdicts: of `judge`, one for each.
        num_classes: C.
    """
    classes, scores = _joined([s.classes for s in scenes], int), _joined([s.scores for s in scenes], float)
    kinds = _joined([v.kinds for v in verdicts], object)
    correct, counted = kinds == CORRECT, kinds != IGNORED
    objects = _count([s.truth_classes for s in scenes], num_classes)
    missed = _count([s.truth_classes[v.missed] for s, v in zip(scenes, verdicts)], num_classes)
    unfound = _count([s.truth_classes[~s.found()] for s in scenes], num_classes)
    as_it_is = _mean_ap(classes[counted], scores[counted], correct[counted], objects)
    gains: dict[str, float | None] = dict.fromkeys(TYPES)
    false_positives: float | None = None
    false_negatives: float | None = None
    if as_it_is is not None:
        for kind in TYPES:
            if kind == "missed":
                ap = _mean_ap(classes[counted], scores[counted], correct[counted], objects - missed)
            else:
                mended = _joined([_mended(s, v, kind) for s, v in zip(scenes, verdicts)], int)
                right = mended >= 0
                kept = counted & (right | (kinds != kind))
                ap = _mean_ap(np.where(right, mended, classes)[kept], scores[kept], (correct | right)[kept], objects)
            gains[kind] = _gain(ap, as_it_is)
        ap = _mean_ap(classes[correct], scores[correct], correct[correct], objects)
        false_positives = _gain(ap, as_it_is)
        ap = _mean_ap(classes[counted], scores[counted], correct[counted], objects - unfound)
        false_negatives = _gain(ap, as_it_is)
    counts = {kind: _count([classes[kinds == kind]], num_classes) for kind in TYPES} | {"missed": missed}
    return Losses(as_it_is, counts, gains, int(unfound.sum()), false_positives, false_negatives)


def average_precision(scores: np.ndarray, correct: np.ndarray, objects: int) -> float:
    """AP of one class as pycocotools computes it: the mean, over 101 recalls, of the best precision from there on.

    Args:
        scores: `[N]`; equal ones count in the given order.
        correct: `[N]`, booleans.
        objects: to be found, at least 1.
    """
    if not len(scores):
        return 0.0
    right = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # beyond the recall that is reached
    return float(best[np.searchsorted(right / objects, np.linspace(0, 1, 101))].mean())


def _mean_ap(classes: np.ndarray, scores: np.ndarray, correct: np.ndarray, objects: np.ndarray) -> float | None:
    of = [classes == k for k in range(len(objects))]
    aps = [average_precision(scores[of[k]], correct[of[k]], n) for k, n in enumerate(objects) if n > 0]
    return float(np.mean(aps)) if aps else None


def _gain(ap: float | None, before: float) -> float:
    """What AP gains; if no object is left, nothing is lost any more (AP 1)."""
    return (1.0 if ap is None else ap) - before


def _mended(scene: Scene, verdict: Verdict, kind: str) -> np.ndarray:
    """`[D]`, the class in which a detection is right after `kind` is mended, -1 if it is not mended or removed."""
    mended = np.full(len(scene.classes), -1)
    taken = scene.found()
    for d in np.flatnonzero((verdict.kinds == kind) & (verdict.targets >= 0)):  # the best first
        target = verdict.targets[d]
        if not taken[target]:
            taken[target], mended[d] = True, scene.truth_classes[target]
    return mended


@dataclass
class _Best:
    value: np.ndarray
    index: np.ndarray


def _best(overlap: np.ndarray) -> _Best:
    """Of `[D, T]` the largest of each row and where it is; 0 where T is 0."""
    if not overlap.shape[1]:
        return _Best(np.zeros(len(overlap)), np.zeros(len(overlap), dtype=int))
    return _Best(overlap.max(1), overlap.argmax(1))


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype)


def _count(classes: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    return np.bincount(_joined(classes, int), minlength=num_classes)
