"""The errors that cost AP. Wrong detections and objects not found get one of six types (TIDE, arXiv 2008.08115).

Section 2.2 of the paper defines the types, section 2.3 how each is corrected. AP is taken at IoU 0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.errors.scenes import MATCH_IOU, Scene, iou

BACKGROUND_IOU = 0.1  # a detection that overlaps every object less than this is on the background
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
    """The verdict on every detection and object of one image.

    Attributes:
        kinds: `[D]`, for each detection `correct`, `ignored` (neither right nor wrong) or of the first five `TYPES`.
        targets: `[D]`, the object that a classification or localisation error lies on, -1 for all others.
        missed: `[T]`, whether an object is of the type `missed`.
    """

    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray


@dataclass
class Losses:
    """How much AP50 each error type costs.

    Attributes:
        ap50: AP50 with all errors, in [0, 1], equal to pycocotools'; None without objects.
        counts: `[C]` for each type, number of errors by class: the detection's, or the missed object's.
        gains: for each type, the gain in AP50 if only this type were corrected; None without objects.
        unfound: number of objects that no detection matched, for any reason.
        false_positives: gain in AP50 if every wrong detection were removed; None without objects.
        false_negatives: gain in AP50 if every object that was not found were removed; None without objects.
    """

    ap50: float | None
    counts: dict[str, np.ndarray]
    gains: dict[str, float | None]
    unfound: int
    false_positives: float | None
    false_negatives: float | None

    def rows(self) -> list[tuple[str, int, float | None]]:
        """Name, count and gain of each type, then of all wrong detections, then of all objects not found."""
        totals = {name: int(count.sum()) for name, count in self.counts.items()}
        wrong = sum(totals.values()) - totals["missed"]
        return [
            *((name, totals[name], self.gains[name]) for name in TYPES),
            ("all false positives", wrong, self.false_positives),
            ("all false negatives", self.unfound, self.false_negatives),
        ]


def judge(scene: Scene) -> Verdict:
    """The type of every error in an image.

    An error can fit several types. As in the authors' figures, localisation goes before classification, and
    classification before duplicate. An overlap that equals a threshold counts as above it.
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
    """Count the errors of all images, and compute the gain of correcting each type alone.

    Errors are corrected as in the paper. A wrong class is replaced, and a loose box is made to fit; the detection is
    then right. If its object is found already, by another detection or by a better-scored one that was corrected
    too, it is removed. Detections of the types both, duplicate and background are removed. A missed object is removed
    from the ground truth; a class without other objects leaves the mean, as in COCO. If no class is left, AP is 1.

    Args:
        scenes: all scored images, in pycocotools' order.
        verdicts: the result of `judge` for each scene.
        num_classes: number of classes C.
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
    """AP of one class as in pycocotools: the mean, over 101 recalls, of the best precision at that recall or above.

    Args:
        scores: `[N]`; equal scores count in the given order.
        correct: `[N]`, booleans.
        objects: number of objects to be found, at least 1.
    """
    if not len(scores):
        return 0.0
    right = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0 beyond the highest recall
    return float(best[np.searchsorted(right / objects, np.linspace(0, 1, 101))].mean())


def _mean_ap(classes: np.ndarray, scores: np.ndarray, correct: np.ndarray, objects: np.ndarray) -> float | None:
    order = np.argsort(classes, kind="stable")
    of = np.split(order, np.searchsorted(classes[order], np.arange(1, len(objects))))
    aps = [average_precision(scores[of[k]], correct[of[k]], n) for k, n in enumerate(objects) if n > 0]
    return float(np.mean(aps)) if aps else None


def _gain(ap: float | None, before: float) -> float:
    """The gain in AP; without objects AP is 1."""
    return (1.0 if ap is None else ap) - before


def _mended(scene: Scene, verdict: Verdict, kind: str) -> np.ndarray:
    """`[D]`, the class in which a detection is right once `kind` is corrected; -1 if it is removed or not touched."""
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
    """The largest entry of each row of `[D, T]` and its index; 0 if T is 0."""
    if not overlap.shape[1]:
        return _Best(np.zeros(len(overlap)), np.zeros(len(overlap), dtype=int))
    return _Best(overlap.max(1), overlap.argmax(1))


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype)


def _count(classes: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    return np.bincount(_joined(classes, int), minlength=num_classes)
