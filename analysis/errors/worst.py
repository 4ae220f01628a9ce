"""The images in which a detector errs most."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.errors.scenes import Scene


@dataclass
class Rank:
    """Why an image is among the worst.

    Attributes:
        index: the image's index among the scenes.
        penalty: the number by which images are ranked.
        unfound: number of objects that no detection found with a score from the threshold on.
        wrong: number of wrong detections with a score from the threshold on.
    """

    index: int
    penalty: float
    unfound: int
    wrong: int


def worst_images(scenes: Sequence[Scene], threshold: float, limit: int) -> list[Rank]:
    """The images with the largest penalty, worst first; images without a penalty are left out.

    The penalty is 1 for each object that is not found with a score from the threshold on, plus the score of each wrong
    detection from the threshold on. A confident mistake thus weighs nearly as much as an overlooked object. A detection
    with the wrong class or place costs both.
    """
    ranks = []
    for i, scene in enumerate(scenes):
        unfound, wrong = int((~scene.found(threshold)).sum()), scene.wrong(threshold)
        ranks.append(Rank(i, unfound + float(scene.scores[wrong].sum()), unfound, int(wrong.sum())))
    ranks.sort(key=lambda r: -r.penalty)
    return [r for r in ranks if r.penalty > 0][:limit]
