"""Everything that is found out about the errors of one evaluation, and its JSON."""

from dataclasses import asdict, dataclass

import numpy as np

from analysis.errors.confusion import confusion_matrix
from analysis.errors.crowding import Bin, by_object_count
from analysis.errors.precision_recall import (
    GRID,
    ThresholdCurve,
    precision_recall,
    threshold_curve,
    threshold_curves,
)
from analysis.errors.scenes import Scene, scenes_of
from analysis.errors.tide import Losses, Verdict, judge, losses
from analysis.errors.worst import Rank, worst_images
from datasets.accumulate import accumulate
from datasets.annotations import Annotations
from datasets.evaluation import Scores, match_detections, summarize
from datasets.metrics import limits_of


@dataclass
class Diagnosis:
    """Where a detector errs; classes are in the order of `names`.

    Attributes:
        names: of the classes, those of `Scores.per_class`.
        scores: the figures.
        scenes: scored images.
        verdicts: of each.
        losses: AP50 lost by type of error.
        threshold: smallest score in `confusion`, `bins` and `worst`.
        confusion: `[C + 1, C + 1]`, see `analysis.errors.confusion`.
        precision: `AP50`, `AP75` and `AP`, each `[C, 101]`, see `analysis.errors.precision_recall`.
        curves: over the score threshold, of each class.
        overall: the same of all classes together; None without objects.
        bins: AP by number of objects.
        worst: images, the worst first.
    """

    names: list[str]
    scores: Scores
    scenes: list[Scene]
    verdicts: list[Verdict]
    losses: Losses
    threshold: float
    confusion: np.ndarray
    precision: dict[str, np.ndarray]
    curves: list[ThresholdCurve | None]
    overall: ThresholdCurve | None
    bins: list[Bin]
    worst: list[Rank]

    def to_dict(self) -> dict:
        """All figures for JSON: AP is -1 (as in results.json) and all else null where there is nothing to score.

        The confusion matrix is mostly empty: its `counts` are `[object, taken for, number]`, with indices of `classes`,
        row by row, where the number is not 0.
        """
        kinds = {name: {"count": n, "ap50_lost": gain} for name, n, gain in self.losses.rows()}
        return {
            "figures": self.scores.figures,
            "errors": {"ap50": self.losses.ap50, "types": kinds},
            "by_objects_in_image": [asdict(b) for b in self.bins],
            "score_threshold": self.threshold,
            "confusion": {"classes": [*self.names, "background"], "counts": _counts(self.confusion)},
            "best_f1": _point(self.overall),
            "classes": [
                {
                    "name": name,
                    **self.scores.per_class[name],
                    "errors": {kind: int(count[k]) for kind, count in self.losses.counts.items()},
                    "best_f1": _point(self.curves[k]),
                    "precision_at_101_recalls": {f: _numbers(v[k]) for f, v in self.precision.items()},
                    "by_threshold": _curve(self.curves[k]),
                }
                for k, name in enumerate(self.names)
            ],
            "thresholds": GRID.tolist(),
            "by_threshold": _curve(self.overall),
            "worst_images": [
                {
                    "image_id": self.scenes[r.index].image.id,
                    "file_name": self.scenes[r.index].image.file_name,
                    "penalty": r.penalty,
                    "unfound": r.unfound,
                    "wrong": r.wrong,
                }
                for r in self.worst
            ],
        }


def diagnose(
    annotations: Annotations,
    results: list[dict],
    max_detections: int | None = None,
    threshold: float = 0.5,
    worst: int = 8,
    protocol: str = "auto",
) -> Diagnosis:
    """Score detections once more and look at every error.

    Args:
        annotations: the truth.
        results: detections in COCO result format.
        max_detections: as in the evaluation.
        threshold: score from which a detection counts where AP's ranking of all of them is not what is asked.
        worst: how many images to pick at most.
        protocol: as in the evaluation.

    Raises:
        UserError: as `datasets.evaluation.evaluate_detections`.
    """
    matched = match_detections(annotations, results, max_detections, protocol)
    tables = accumulate(matched, limits_of(matched.max_detections, matched.columns.protocol))
    scores, scenes = summarize(matched.columns, tables), scenes_of(matched)
    verdicts, names = [judge(s) for s in scenes], list(scores.per_class)
    return Diagnosis(
        names,
        scores,
        scenes,
        verdicts,
        losses(scenes, verdicts, len(names)),
        threshold,
        confusion_matrix(scenes, len(names), threshold),
        precision_recall(tables),
        threshold_curves(scenes, len(names)),
        threshold_curve(scenes),
        by_object_count(matched, scenes, threshold),
        worst_images(scenes, threshold, worst),
    )


def _point(curve: ThresholdCurve | None) -> dict | None:
    return asdict(curve.best) if curve and curve.best else None


def _curve(curve: ThresholdCurve | None) -> dict | None:
    if curve is None:
        return None
    return {name: _numbers(getattr(curve, name)) for name in ("precision", "recall", "f1")}


def _counts(matrix: np.ndarray) -> list[list[int]]:
    rows, columns = np.nonzero(matrix)
    return np.stack([rows, columns, matrix[rows, columns]], 1).tolist()


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if v != v else round(v, 6) for v in values.tolist()]
