"""Large-scale jitter: an image much smaller or larger than usual, on a canvas of the usual size."""

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from datasets.transforms import ShortestSize, draw_int
from util.config import IMAGENET_MEAN

SCALES = (0.1, 2.0)  # the paper's
GREY = [round(255 * mean) for mean in IMAGENET_MEAN]  # the paper pads with grey; this one is normalised to about 0


class LargeScaleJitter(ShortestSize):
    """Scale an image by 0.1 to 2 of the size that it would have, then pad or crop it to that (arXiv 2012.07177).

    The paper's canvas is a square of 1024 pixels for all; this one has the size to which `ShortestSize` would have
    resized the image, so that it never needs more memory. The image lies anywhere on it. What a crop leaves out is cut
    before the image is resized, in whole pixels of the image, so that nothing larger than the canvas is made.

    Args:
        sizes: shorter sides in pixels.
        max_size: bound of the longer side; None is none.
    """

    def make_params(self, flat_inputs: list) -> dict:
        """Draw the canvas, the scale and the place."""
        canvas = super().make_params(flat_inputs)["size"]
        image = v2.query_size(flat_inputs)
        scale = SCALES[0] + (SCALES[1] - SCALES[0]) * float(torch.rand(()))
        height, width = (max(1, round(side / max(scale, 1.0))) for side in image)  # that are seen of the image
        shown = [max(1, round(side * min(scale, 1.0))) for side in canvas]
        top, left = draw_int(0, image[0] - height), draw_int(0, image[1] - width)
        above, before = draw_int(0, canvas[0] - shown[0]), draw_int(0, canvas[1] - shown[1])
        padding = [before, above, canvas[1] - shown[1] - before, canvas[0] - shown[0] - above]
        crop = {"top": top, "left": left, "height": height, "width": width, "size": shown}
        return {"crop": crop, "padding": padding}

    def transform(self, inpt, params: dict):
        """Crop, resize and pad an image, or its boxes."""
        inpt = self._call_kernel(TF.resized_crop, inpt, **params["crop"])
        return self._call_kernel(TF.pad, inpt, padding=params["padding"], fill=GREY) if any(params["padding"]) else inpt
