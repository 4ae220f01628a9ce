"""Pictures of errors: the ground truth beside the detections, coloured by the type of error."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from analysis.errors.scenes import Scene
from analysis.errors.tide import CORRECT, IGNORED, Verdict
from util.drawing import draw_detections
from util.fonts import drawable

# Eight colours as far apart in hue and lightness as possible.
COLOURS: dict[str, tuple[int, int, int]] = {
    CORRECT: (34, 150, 74),
    "classification": (214, 39, 170),
    "localisation": (245, 150, 0),
    "both": (125, 60, 190),
    "duplicate": (0, 150, 200),
    "background": (214, 35, 35),
    "missed": (255, 214, 0),
    IGNORED: (130, 130, 130),
}
_LONGEST = 900  # pixels of a picture's longer side
_GAP = 12  # pixels between the left and the right picture


def draw_errors(
    picture: Image.Image, scene: Scene, verdict: Verdict, names: Sequence[str], threshold: float
) -> Image.Image:
    """Ground truth on the left, detections on the right, both in `COLOURS`.

    On the left, an object that no detection found with a score from the threshold on is drawn as `missed`, whatever the
    reason; a crowd is drawn as `ignored`.

    Args:
        picture: the RGB picture, in the size that the boxes refer to.
        scene: the picture's objects and detections.
        verdict: the verdict on them.
        names: names of the classes; those that no font here can draw are shown as numbers.
        threshold: the smallest score that is drawn.
    """
    scale = min(1.0, _LONGEST / max(picture.size))
    shown_names = drawable(dict(enumerate(names)))
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    found = scene.found(threshold)
    texts = [shown_names[k] if ok else f"missed: {shown_names[k]}" for k, ok in zip(scene.truth_classes, found)]
    texts += [f"crowd: {shown_names[k]}" for k in scene.crowd_classes]
    colours = [COLOURS[CORRECT if ok else "missed"] for ok in found] + [COLOURS[IGNORED]] * len(scene.crowd_classes)
    order = sorted(range(len(texts)), key=lambda i: i >= len(found) or bool(found[i]))  # the missed on top
    boxes = np.concatenate([scene.truth_boxes, scene.crowd_boxes])
    left = _draw(picture, boxes[order] * scale, [texts[i] for i in order], [colours[i] for i in order], None)

    shown = np.flatnonzero(scene.scores >= threshold)
    texts = [shown_names[k] for k in scene.classes[shown]]
    colours = [COLOURS[kind] for kind in verdict.kinds[shown]]
    right = _draw(picture, scene.boxes[shown] * scale, texts, colours, scene.scores[shown])
    both = Image.new("RGB", (left.width + _GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + _GAP, 0))
    return both


def _draw(picture: Image.Image, boxes: np.ndarray, texts: list[str], colours: list, scores) -> Image.Image:
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return draw_detections(picture, corners, range(len(texts)), scores, dict(enumerate(texts)), colours)
