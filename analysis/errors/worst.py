"""The images in which a detector errs most."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.errors.scenes import Scene


@dataclass
class Rank:
    """Why an image is among the worst.

    Attributes:
        index: of the image among the scenes.
        penalty: what it is ranked by.
        unfound: objects that nothing found with a score from the threshold on.
        wrong: wrong detections from the threshold on.
    """

    index: int
    penalty: float
    unfound: int
    wrong: int


def worst_images(scenes: Sequence[Scene], threshold: float, limit: int) -> list[Rank]:
    """The images with the largest penalty, worst first; those without one are left out.

    The penalty is 1 for each object that is not found with a score from the threshold on, and the score of each wrong
    detection from the threshold on: a confident mistake weighs nearly as much as an object overlooked. A detection
    that misses its object by class or place costs both.
    """
    ranks = []
    for i, scene in enumerate(scenes):
        unfound, wrong = int((~scene.found(threshold)).sum()), scene.wrong(threshold)
        ranks.append(Rank(i, unfound + float(scene.scores[wrong].sum()), unfound, int(wrong.sum())))
    ranks.sort(key=lambda r: -r.penalty)
    return [r for r in ranks if r.penalty > 0][:limit]
