"""AP by the number of objects in an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.errors.scenes import Scene
from datasets.accumulate import accumulate
from datasets.greedy import Matched
from datasets.metrics import figures_of, limits_of

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


def by_object_count(matched: Matched, scenes: Sequence[Scene], threshold: float) -> list[Bin]:
    """Score the images of each bin by themselves. Bins without images are left out. Crowds do not count as objects.

    Args:
        matched: the detections of all images.
        scenes: the scenes of the same matching.
        threshold: the smallest score of a spurious detection.
    """
    protocol = matched.columns.protocol
    limits = limits_of(matched.max_detections, protocol)
    bins, objects = [], np.array([len(s.truth_classes) for s in scenes])
    for low, high in BINS:
        within = (objects >= low) & (objects <= (np.inf if high is None else high))
        chosen = [scenes[i] for i in np.flatnonzero(within).tolist()]
        if not chosen:
            continue
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        figures = figures_of(accumulate(matched, limits, within), protocol)
        spurious = sum(int(s.wrong(threshold).sum()) for s in chosen) / len(chosen)
        count = int(objects[within].sum())
        bins.append(Bin(name, len(chosen), count, {k: figures[k] for k in ("AP", "AP50", "AP75")}, spurious))
    return bins
