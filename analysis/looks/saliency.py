"""Error-bounded saliency: the smallest region of an image that keeps an output within a bound.

Deformable ConvNets v2 (arXiv 1811.11168, section 2) optimises a mask. Here blocks are deleted greedily, from coarse to
fine: this needs no gradients, and the result is within the bound by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from models.detector import DeformableDETR
from models.predictions import Predictions
from util.progress import progress


@dataclass
class SaliencyRegion:
    """The region of an image that an output needs.

    Attributes:
        keep: `[rows, columns]`, True on the cells that stay.
        error: error of the output when only these cells are seen; at most the bound.
        passes: number of masks tried; each costs a forward pass of one image.
    """

    keep: Tensor
    error: float
    passes: int

    @property
    def share(self) -> float:
        """The share of the image that is kept, in [0, 1]."""
        return float(self.keep.float().mean())


def saliency_region(
    errors_of: Callable[[Tensor], Tensor],
    cells: tuple[int, int],
    bound: float,
    coarsest: int = 4,
    batch: int = 16,
) -> SaliencyRegion:
    """Delete blocks of cells while the error stays within the bound.

    Blocks have `coarsest` cells a side at first, then half as many, down to single cells. For each size, every block is
    first deleted alone to see what it costs. Then the cheapest blocks are deleted together: of the cheapest n, n/2,
    n/4, ... 1 blocks, the largest group that stays within the bound goes; then the remaining blocks are tried in the
    same way. A block that alone exceeds the bound by then stays. Single cells are repeated until none can be deleted.
    Every cell of the result is therefore needed, though another region might be smaller.

    Every mask tried costs a forward pass of one image. Deleting alone takes one for each block that is left, deleting
    together log2(n) + 1. With 16 x 16 cells, objects of a tenth to a third of the image took 130 to 600 passes.

    Args:
        errors_of: maps masks `[N, rows, columns]`, True on kept cells, to errors `[N]`; the whole image has error 0.
        cells: number of cells, (rows, columns).
        bound: the largest error that is allowed.
        coarsest: cells along a side of the first blocks, a power of two.
        batch: number of masks in one call of `errors_of`.
    """
    keep, error, passes = torch.ones(cells, dtype=torch.bool), 0.0, 0
    bar = progress([], "saliency: masks tried")

    def errors(masks: Tensor) -> Tensor:
        nonlocal passes
        found = torch.cat([errors_of(part).cpu() for part in masks.split(batch)])
        passes += len(masks)
        bar.update(len(masks))
        return found

    side = coarsest
    while side >= 1:
        blocks = _blocks(cells, side)  # [N, rows, columns]
        blocks = blocks[(blocks & keep).flatten(1).any(1)]
        alone = errors(keep & ~blocks) if len(blocks) else torch.zeros(0)
        order = [i for i in alone.argsort(stable=True).tolist() if alone[i] <= bound]
        deleted = bool(order)  # at least the first, which has been tried
        while order:
            lengths = _halvings(len(order))
            masks = torch.stack([keep & ~blocks[order[:n]].any(0) for n in lengths])
            tried = errors(masks)
            fits = [i for i, e in enumerate(tried.tolist()) if e <= bound]
            if fits:
                keep, error = masks[fits[0]], float(tried[fits[0]])
                order = order[lengths[fits[0]] :]
            else:  # the first does not fit any more, because others have been deleted since it was scored
                order = order[1:]
        if side > 1 or not deleted:
            side //= 2
    bar.close()
    return SaliencyRegion(keep, error, passes)


def detection_errors(
    model: DeformableDETR,
    images: Tensor,
    padding_mask: Tensor,
    query: int,
    label: int,
    any_query: bool = False,
) -> Callable[[Tensor], Tensor]:
    """How much a detection changes when only some cells of the image are seen; the others take the mean colour.

    The error is the larger of the relative change of the score and 1 - IoU of the boxes.

    Args:
        model: the detector, in evaluation mode.
        images: `[1, 3, H, W]`, normalised, so the mean colour is zero.
        padding_mask: `[1, H, W]`, True on padding.
        query, label: the detection's query and class.
        any_query: if True, the query with the smallest error counts, not this one alone. Two-stage models need this,
            because another image changes the order of the proposals.

    Returns:
        A function from masks `[N, rows, columns]` to errors `[N]`.
    """

    @torch.no_grad()
    def look(mask: Tensor) -> Predictions:
        seen = images * F.interpolate(mask[:, None].to(images), size=images.shape[-2:])
        return model(seen, padding_mask.expand(len(mask), -1, -1))

    whole = look(torch.ones(1, 1, 1, dtype=torch.bool))
    score = whole.logits[-1, 0, query, label].float().sigmoid()
    box = box_convert(whole.boxes[-1, 0, query].float(), "cxcywh", "xyxy")[None]
    picked = slice(None) if any_query else slice(query, query + 1)

    def errors(mask: Tensor) -> Tensor:
        found = look(mask)
        change = (found.logits[-1, :, picked, label].float().sigmoid() / score - 1).abs()  # [N, Q or 1]
        boxes = box_convert(found.boxes[-1, :, picked].float(), "cxcywh", "xyxy")
        overlap = box_iou(boxes.flatten(0, 1), box).reshape(change.shape)
        return torch.maximum(change, 1 - overlap).amin(1)

    return errors


def cells_of(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """(rows, columns) of nearly square cells, with `longer` of them along the longer side of a (height, width)."""
    height, width = size
    return max(1, round(longer * height / max(size))), max(1, round(longer * width / max(size)))


def _blocks(cells: tuple[int, int], side: int) -> Tensor:
    rows, columns = torch.arange(cells[0]) // side, torch.arange(cells[1]) // side
    number = rows[:, None] * (int(columns[-1]) + 1) + columns
    return number == torch.arange(int(number.max()) + 1)[:, None, None]


def _halvings(count: int) -> list[int]:
    return [count] if count == 1 else [count, *_halvings(count // 2)]
