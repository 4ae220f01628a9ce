"""The objects of one image: what a data set holds, the matcher assigns and the criterion compares with."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Objects:
    """The truth about one image.

    Attributes:
        boxes: `[T, 4]`, cxcywh in [0, 1] of the unpadded image.
        labels: `[T]`, class indices.
        image_id: id of the image in its annotation file.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int | float | str
