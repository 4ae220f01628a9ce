"""AP by the number of objects in an image."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.errors.scenes import Scene
from datasets.annotations import Annotations
from datasets.evaluation import evaluate_detections

BINS: tuple[tuple[int, int | None], ...] = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, None))


@dataclass
class Bin:
    """The score of images with a similar number of objects.

    Attributes:
        name: the range of object counts, such as `2-3` or `16+`.
        images: number of images.
        objects: number of objects in all of them.
        figures: `AP`, `AP50`, `AP75`; -1 without objects.
        spurious: average number of wrong detections in an image, among those that reach the score threshold.
    """

    name: str
    images: int
    objects: int
    figures: dict[str, float]
    spurious: float


def by_object_count(
    annotations: Annotations, results: list[dict], scenes: Sequence[Scene], max_detections: int, threshold: float
) -> list[Bin]:
    """Score the images of each bin by themselves. Bins without images are left out. Crowds do not count as objects.

    Args:
        annotations: the annotations, which are the ground truth.
        results: detections in COCO result format.
        scenes: the scenes of the same evaluation.
        max_detections: largest number of detections in an image, as in that evaluation.
        threshold: the smallest score of a spurious detection.
    """
    bins = []
    for low, high in BINS:
        chosen = [s for s in scenes if low <= len(s.truth_classes) and (high is None or len(s.truth_classes) <= high)]
        if not chosen:
            continue
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        figures = evaluate_detections(annotations, results, max_detections, [s.image.id for s in chosen]).figures
        spurious = sum(int(s.wrong(threshold).sum()) for s in chosen) / len(chosen)
        objects = sum(len(s.truth_classes) for s in chosen)
        bins.append(Bin(name, len(chosen), objects, {k: figures[k] for k in ("AP", "AP50", "AP75")}, spurious))
    return bins
