"""A trained detector that takes pictures."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import nn

from util.visualize import draw_detections


class Predictor:
    """Pictures in, detections out. `main.load_predictor` makes one from a checkpoint.

    Args:
        model: batch to predictions.
        transform: PIL image to a normalised tensor `[3, H, W]`.
        pad: list of tensors to (images `[B, 3, H, W]`, padding_mask `[B, H, W]`).
        postprocess: (predictions, sizes, top_k) to detections.
        names: class names by label.
        device: where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Callable,
        pad: Callable,
        postprocess: Callable,
        names: dict[int, str],
        device: torch.device,
    ):
        self.model, self.transform, self.pad, self.postprocess = model.eval(), transform, pad, postprocess
        self.names, self.device = names, device

    @torch.inference_mode()
    def __call__(self, pictures: Image.Image | Sequence[Image.Image], threshold: float = 0.0, top_k: int = 100):
        """Detect in one picture, or in several at once.

        Args:
            pictures: of any mode.
            threshold: smallest score to keep.
            top_k: most detections for each picture.

        Returns:
            Detections (boxes xyxy in pixels, scores, labels), or a list of them.
        """
        several = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
        images, padding_mask = self.pad([self.transform(p) for p in several])
        predictions = self.model(images.to(self.device), padding_mask.to(self.device))
        found = self.postprocess(predictions, [(p.height, p.width) for p in several], top_k)
        found = [d.above(threshold) for d in found]
        return found[0] if isinstance(pictures, Image.Image) else found

    def draw(self, picture: Image.Image, detections) -> Image.Image:
        """A copy of the picture with the detections drawn on it."""
        return draw_detections(picture, detections.boxes, detections.labels, detections.scores, self.names)
