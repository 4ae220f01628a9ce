"""A trained detector that takes pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import nn

from datasets.annotations import Id
from engine.inputs import Picture, check_detections, check_threshold, check_top_k, is_one, to_picture
from engine.results import NamedDetections
from models.postprocess import Detections
from util.drawing import draw_detections


class Predictor:
    """Takes pictures and returns detections.

    Args:
        model: batch to predictions.
        prepare: PIL image of any mode to an upright RGB one, which is what is looked at and drawn on.
        batch_of: RGB images to a batch on the model's device, images `[B, 3, H, W]` and padding_mask `[B, H, W]`.
        postprocess: (predictions, sizes, top_k) to detections.
        names: class names by label.
        category_of: ids of classes in annotation files by label, as far as they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        prepare: Callable,
        batch_of: Callable,
        postprocess: Callable,
        names: dict[int, str],
        category_of: Mapping[int, Id] | None = None,
    ):
        self.model, self.batch_of, self.postprocess = model.eval(), batch_of, postprocess
        self.prepare, self.names, self.category_of = prepare, names, dict(category_of or {})

    def __repr__(self) -> str:
        named, kind = list(self.names.values()), type(self.model).__name__
        count = sum(weight.numel() for weight in self.model.parameters()) / 1e6
        classes = ", ".join(named[:10] + ["..."] * (len(named) > 10))
        return f"Predictor({kind}, {count:.1f} M parameters, {len(named)} classes: {classes}); call it with a picture"

    @torch.inference_mode()
    def __call__(self, pictures: Picture | Sequence[Picture], threshold: float = 0.0, top_k: int = 100):
        """Detect in one picture, or in several at once.

        Args:
            pictures: one, or a list of them. Each is a path; a PIL image of any mode; a uint8 array `[H, W, 3]` in RGB
                (`cv2.imread` gives BGR: hand over `array[..., ::-1]`), or `[H, W]` in grey; or a tensor `[3, H, W]` in
                RGB or `[1, H, W]` in grey, of uint8 or of floats in [0, 1], as torchvision has them. Of several frames
                the first is taken, or the one that a PIL image stands at.
            threshold: smallest score to keep, between 0 and 1.
            top_k: most detections for each picture.

        Returns:
            Detections (boxes xyxy in pixels of the upright picture, scores, labels, names), or a list of them.

        Raises:
            UserError: anything else, or a picture that cannot be read.
        """
        threshold, top_k = check_threshold(threshold), check_top_k(top_k)
        if is_one(pictures):
            return self._detect([self._upright(pictures, "picture")], threshold, top_k)[0]
        several = [self._upright(p, f"pictures[{i}]") for i, p in enumerate(cast(Sequence[Picture], pictures))]
        return self._detect(several, threshold, top_k)

    def _upright(self, given: Any, name: str) -> Image.Image:
        picture = to_picture(given, name)
        return picture if picture is not given and picture.mode == "RGB" else self.prepare(picture)

    def _detect(self, several: list[Image.Image], threshold: float, top_k: int) -> list[NamedDetections]:
        sizes = [(p.height, p.width) for p in several]
        # Pictures of unequal sizes go one by one: padding would change what is found in them.
        step = len(several) if len(set(sizes)) == 1 else 1
        found = []
        for i in range(0, len(several), step):
            batch = self.batch_of(several[i : i + step])
            predictions = self.model(batch.images, batch.padding_mask)
            detections = self.postprocess(predictions, sizes[i : i + step], top_k)
            found += [NamedDetections.of(d.above(threshold), self.names) for d in detections]
        return found

    def draw(self, picture: Picture, detections: Detections) -> Image.Image:
        """An upright RGB copy of the picture with the detections drawn on it."""
        check_detections(detections)
        picture = self._upright(picture, "picture")
        return draw_detections(picture, detections.boxes, detections.labels, detections.scores, self.names)

    def describe(self, detections: Detections) -> list[dict]:
        """Plain dictionaries of the detections, for JSON."""
        check_detections(detections)
        columns = (detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
        return [
            {"label": label, "name": self.names.get(label, str(label)), "score": score, "box_xyxy": box}
            for label, score, box in zip(*columns)
        ]
