"""A trained detector that takes pictures."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import nn

from util.drawing import draw_detections


class Predictor:
    """Pictures in, detections out. `main.load_predictor` makes one from a checkpoint.

    Args:
        model: batch to predictions.
        prepare: PIL image of any mode to an upright RGB one, which is what is looked at and drawn on.
        batch_of: RGB images to a batch on the model's device, images `[B, 3, H, W]` and padding_mask `[B, H, W]`.
        postprocess: (predictions, sizes, top_k) to detections.
        names: class names by label.
    """

    def __init__(
        self, model: nn.Module, prepare: Callable, batch_of: Callable, postprocess: Callable, names: dict[int, str]
    ):
        self.model, self.batch_of, self.postprocess = model.eval(), batch_of, postprocess
        self.prepare, self.names = prepare, names

    @torch.inference_mode()
    def __call__(self, pictures: Image.Image | Sequence[Image.Image], threshold: float = 0.0, top_k: int = 100):
        """Detect in one picture, or in several at once.

        Args:
            pictures: of any mode.
            threshold: smallest score to keep.
            top_k: most detections for each picture.

        Returns:
            Detections (boxes xyxy in pixels of the upright picture, scores, labels), or a list of them.
        """
        several = [self.prepare(p) for p in ([pictures] if isinstance(pictures, Image.Image) else pictures)]
        sizes = [(p.height, p.width) for p in several]
        # Pictures of unequal sizes go one by one: padding would change what is found in them.
        step = len(several) if len(set(sizes)) == 1 else 1
        found = []
        for i in range(0, len(several), step):
            batch = self.batch_of(several[i : i + step])
            predictions = self.model(batch.images, batch.padding_mask)
            found += [d.above(threshold) for d in self.postprocess(predictions, sizes[i : i + step], top_k)]
        return found[0] if isinstance(pictures, Image.Image) else found

    def draw(self, picture: Image.Image, detections) -> Image.Image:
        """An upright RGB copy of the picture with the detections drawn on it."""
        picture = self.prepare(picture)
        return draw_detections(picture, detections.boxes, detections.labels, detections.scores, self.names)

    def describe(self, detections) -> list[dict]:
        """Plain dictionaries of the detections, for JSON."""
        columns = (detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist())
        return [
            {"label": label, "name": self.names.get(label, str(label)), "score": score, "box_xyxy": box}
            for label, score, box in zip(*columns)
        ]
