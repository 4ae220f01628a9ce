"""What is written beside the detector that it was made of: the largest difference of scores and boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.pictures import list_pictures, read_each
from datasets.shapes import draw_scene
from datasets.transforms import eval_transform, to_image
from engine.exported import Run
from util.config import EvalDataConfig
from util.errors import UserError

BOX_TOLERANCE = 1e-3  # of a box's longer side
SCORE_TOLERANCE = 1e-4
DRAWN = 3  # pictures of shapes where none are given
MOST = 8  # pictures that are compared of those that are given: a folder may hold thousands


@dataclass
class Difference:
    """How far detections lie apart.

    Attributes:
        boxes: the largest difference of a coordinate, in longer sides of the box; infinite where a detection has no
            counterpart.
        scores: the largest difference of two scores.
        sizes: (B, H, W) of what was compared.
    """

    boxes: float = 0.0
    scores: float = 0.0
    sizes: tuple[tuple[int, ...], ...] = ()

    def __add__(self, other: "Difference") -> "Difference":
        pairs = max(self.boxes, other.boxes), max(self.scores, other.scores)
        return Difference(*pairs, self.sizes + other.sizes)

    @property
    def is_small(self) -> bool:
        """Whether both are within the tolerances."""
        return self.boxes <= BOX_TOLERANCE and self.scores <= SCORE_TOLERANCE

    def text(self) -> str:
        """A line to print."""
        tried = ", ".join("x".join(map(str, size)) for size in self.sizes)
        return (
            f"largest difference: {self.boxes:.1e} of a box's longer side, {self.scores:.1e} in scores "
            f"(batch x height x width: {tried})"
        )


def sample_batches(pattern: str | None, data: EvalDataConfig, fixed: tuple[int, int] | None) -> list[Tensor]:
    """Pictures to compare on, resized as in evaluation, one by one, and a pair: the first beside its mirror image.

    Args:
        pattern: picture, folder or pattern, of which the first are taken; None draws shapes.
        data: the sizes that pictures are brought to.
        fixed: (H, W) to stretch them to, where only that is taken.

    Returns:
        `[B, 3, H, W]` in uint8 each.
    """
    if pattern is None:
        rng = np.random.default_rng(0)
        pictures = [draw_scene(rng, round(data.eval_size * 1.25))[0] for _ in range(DRAWN)]
    else:
        pictures = [picture for _, picture in read_each(list_pictures(pattern)[:MOST], "read")]
    if fixed:
        pictures = [p.resize(fixed[::-1], Image.Resampling.BILINEAR) for p in pictures]
    resize = eval_transform(data.eval_size, data.max_size)
    images = [to_image(p) if fixed else resize(to_image(p)) for p in pictures]
    batches = [torch.as_tensor(image)[None] for image in images]
    return [*batches, torch.cat([batches[0], batches[0].flip(-1)])]


@torch.inference_mode()
def compare(expected: Run, written: Run, batches: Sequence[Tensor]) -> Difference:
    """Run both on the same images.

    Raises:
        UserError: they differ by more than the tolerances.
    """
    total = Difference()
    for images in batches:
        pairs = zip(*expected(images), *written(images))
        for boxes, scores, labels, other_boxes, other_scores, other_labels in pairs:
            total += difference((boxes, scores, labels), (other_boxes, other_scores, other_labels))
        total.sizes += ((len(images), *images.shape[-2:]),)
    if not total.is_small:
        raise UserError(
            f"what was written differs from the checkpoint, and is not kept; {total.text()}; at most {BOX_TOLERANCE} "
            f"and {SCORE_TOLERANCE} would be rounding"
        )
    return total


def difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> Difference:
    """How far two lists of detections lie apart, whatever the order of those whose scores are alike.

    Scores are compared rank by rank. A box is compared with the nearest one of its label whose score is the same, up to
    the tolerance. Boxes whose score is that of the last rank may have lost their place to another, and need no
    counterpart.

    Args:
        one, other: boxes `[N, 4]`, scores `[N]`, the best first, and labels `[N]` of the same image.
    """
    if one[0].shape != other[0].shape:
        return Difference(float("inf"), float("inf"))
    if not len(one[0]):
        return Difference()
    scores = float((one[1].double() - other[1].double()).abs().nan_to_num(nan=float("inf")).max())
    return Difference(max(_farthest(one, other), _farthest(other, one)), scores)


def _farthest(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest distance from a box of one to its counterpart of the other, in its longer sides."""
    boxes, scores, labels = (t.double() if t.is_floating_point() else t for t in one)
    other_boxes, other_scores, other_labels = (t.double() if t.is_floating_point() else t for t in other)
    apart = (boxes[:, None] - other_boxes[None]).abs().amax(-1)  # [N, N]
    side = (boxes[:, 2:] - boxes[:, :2]).amax(-1).clamp(min=1.0)
    unlike = (scores[:, None] - other_scores[None]).abs() > SCORE_TOLERANCE
    unlike |= labels[:, None] != other_labels[None]
    nearest = (apart / side[:, None]).masked_fill(unlike, float("inf")).amin(1)
    nearest = nearest.nan_to_num(nan=float("inf"), posinf=float("inf"))
    at_the_end = scores <= scores[-1] + SCORE_TOLERANCE
    needed = nearest[~(at_the_end & nearest.isinf())]
    return float(needed.max()) if len(needed) else 0.0
