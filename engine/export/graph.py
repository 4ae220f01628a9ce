"""What every format writes: a detector from images in bytes to detections in pixels, and its graph."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from engine.export.same_padding import short_sizes
from models.detector import DeformableDETR
from models.folded_norms import fold_for_inference
from ops.functional import BACKEND_VARIABLE
from util.environment import variable

# Sides that are traced: of unequal lengths, so that neither is taken for the other.
TRACED = (2, 3, 352, 416)


class ImagesToDetections(nn.Module):
    """A detector with all that lies between an image's bytes and its boxes: normalisation, sigmoid, top-k, scaling.

    Images of a batch have one size, so there is no padding but that which the backbone asks for.

    Args:
        model: the detector, in evaluation mode; its norms are folded in place.
        top_k: detections of each image.
    """

    # No names that values of a graph may have: with buffers called mean and std, ONNX Runtime refused the file.
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: DeformableDETR, top_k: int):
        super().__init__()
        fold_for_inference(model)
        self.model, self.top_k = model, top_k
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.backbone, name)).view(3, 1, 1)
            self.register_buffer(f"pixel_{name}", values, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: `[B, 3, H, W]` in uint8, red first.

        Returns:
            Boxes `[B, N, 4]`, xyxy in pixels of these images; scores `[B, N]`, the best first; labels `[B, N]`.
        """
        batch, _, height, width = images.shape
        normalised = (images.to(self.pixel_mean.dtype) * (1 / 255) - self.pixel_mean) / self.pixel_std
        mask = images.new_zeros(batch, height, width, dtype=torch.bool)
        if (multiple := self.model.size_multiple) > 1:  # always, not where need be: a graph has no choice of that kind
            more = (0, -width % multiple, 0, -height % multiple)
            normalised, mask = F.pad(normalised, more), F.pad(mask, more, value=True)
        predictions = self.model.detect(self.model.backbone(normalised, mask), mask)
        logits, boxes = predictions.logits[-1], predictions.boxes[-1]
        queries, classes = logits.shape[1:]
        scores, pairs = logits.sigmoid().flatten(1).topk(min(self.top_k, queries * classes), dim=1)
        corners = box_convert(boxes, "cxcywh", "xyxy")
        corners = corners.gather(1, (pairs // classes)[..., None].expand(-1, -1, 4))
        size = torch.cat([corners.new_full((1,), side) for side in (width, height, width, height)])
        return corners * size, scores, pairs % classes


def trace(detector: ImagesToDetections, size: tuple[int, int] | None, reference: bool) -> torch.export.ExportedProgram:
    """The graph of a detector, for any number of images.

    Args:
        detector: see above.
        size: (H, W) of the images; None leaves it open.
        reference: whether the sampling operator is written as PyTorch's own operators, even where a compiled one is
            registered.
    """
    height, width = size or TRACED[2:]
    images = torch.zeros(TRACED[0], TRACED[1], height, width, dtype=torch.uint8)
    free = torch.export.Dim.DYNAMIC
    dynamic = {0: free} if size else {0: free, 2: free, 3: free}
    backend = variable(BACKEND_VARIABLE, "reference" if reference else None)
    with torch.no_grad(), _plain_attention(), short_sizes(detector), backend:
        return torch.export.export(detector, (images,), dynamic_shapes=(dynamic,), strict=False)


def smallest_side(program: torch.export.ExportedProgram) -> int:
    """The smallest height and width in pixels that a graph with open sizes is for: maps of one pixel have another."""
    ranges = program.range_constraints.values()
    return max((int(allowed.lower) for allowed in ranges), default=1)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """PyTorch's fused inference kernel of self-attention has no form in other runtimes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Loggers of libraries that say what they do, not what went wrong."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
