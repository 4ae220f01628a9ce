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
        seed: of what is drawn at random for this image in this epoch, such as denoising queries.
        exhaustive: `[V]`, indices of the classes of which every object is listed: of these, whatever finds none is
            wrong. None unless `loss.federated` asks for it.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int | float | str
    seed: int = 0
    exhaustive: Tensor | None = None
