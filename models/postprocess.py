"""From predictions to detections in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert

from models.predictions import Predictions


@dataclass
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: `[N, 4]`, xyxy in pixels of the original image.
        scores: `[N]`, in [0, 1].
        labels: `[N]`, class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def above(self, threshold: float) -> "Detections":
        """Those whose score is at least `threshold`."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])


@torch.no_grad()
def postprocess(predictions: Predictions, sizes: Sequence[tuple[int, int]], top_k: int = 100) -> list[Detections]:
    """The `top_k` best pairs of query and class of every image, from the last decoder layer.

    Args:
        predictions: the model's predictions.
        sizes: (height, width) in pixels of each original image.
        top_k: detections to keep; all of them if there are fewer pairs.

    Returns:
        Detections of each image, on the CPU (one transfer for the batch).
    """
    logits, boxes = predictions.logits[-1], predictions.boxes[-1]
    num_classes = logits.shape[-1]
    scores, pairs = logits.float().sigmoid().flatten(1).topk(min(top_k, logits[0].numel()), dim=1)
    boxes = box_convert(boxes.float(), "cxcywh", "xyxy").gather(1, (pairs // num_classes)[..., None].expand(-1, -1, 4))
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype)
    packed = torch.cat([boxes, scores[..., None], (pairs % num_classes)[..., None].float()], -1).cpu()  # [B, N, 6]
    return [
        Detections(image[:, :4] * size, image[:, 4].clone(), image[:, 5].long()) for image, size in zip(packed, scale)
    ]
