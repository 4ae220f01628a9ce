"""Error-bounded saliency: the smallest region of an image that keeps an output within a bound.

Deformable ConvNets v2 (arXiv 1811.11168, section 2) looks for it with an optimised mask; here blocks are deleted
greedily, from coarse to fine, which needs no gradients and whose result is within the bound by construction.
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
    """What of an image an output needs.

    Attributes:
        keep: `[rows, columns]`, True on the cells that stay.
        error: of the output when only they are seen; at most the bound.
        passes: masks that were tried, each of which costs a forward pass of one image.
    """

    keep: Tensor
    error: float
    passes: int

    @property
    def share(self) -> float:
        """Of the image that is kept, in [0, 1]."""
        return float(self.keep.float().mean())


def saliency_region(
    errors_of: Callable[[Tensor], Tensor],
    cells: tuple[int, int],
    bound: float,
    coarsest: int = 4,
    batch: int = 16,
) -> SaliencyRegion:
    """Delete blocks of cells while the error stays within the bound.

    For blocks of `coarsest` cells a side, then half of that, down to single cells: each block is deleted alone to see
    what it costs, and in the order of cost as many as possible are deleted together: the longest of the leading runs
    of n, n/2, n/4, ... 1 blocks that stays within the bound, then on from there; one that alone exceeds it by now
    stays. Single cells are gone through again until none can be deleted: of what is returned, every cell is needed,
    though another region might be smaller still.

    Every mask tried is a forward pass of one image: scoring takes one for each block that is left, a run log2(n) + 1.
    Of 16 x 16 cells it was 130 to 600 for objects of a tenth to a third of the image.

    Args:
        errors_of: masks `[N, rows, columns]`, True on what is kept, to errors `[N]`, 0 for the whole image.
        cells: (rows, columns).
        bound: largest error.
        coarsest: cells along a side of the first blocks, a power of two.
        batch: masks to hand over at once.
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
        deleted = bool(order)  # at least the first: it has been tried
        while order:
            lengths = _halvings(len(order))
            masks = torch.stack([keep & ~blocks[order[:n]].any(0) for n in lengths])
            tried = errors(masks)
            fits = [i for i, e in enumerate(tried.tolist()) if e <= bound]
            if fits:
                keep, error = masks[fits[0]], float(tried[fits[0]])
                order = order[lengths[fits[0]] :]
            else:  # not even the first of them: others have been deleted since it was scored
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
    """How far a detection strays when only some cells of the image are seen; the others take the mean colour.

    The error is the larger of the relative change of the score and 1 - IoU of the boxes.

    Args:
        model: in evaluation mode.
        images: `[1, 3, H, W]`, normalised, so that the mean colour is zero.
        padding_mask: `[1, H, W]`, True on padding.
        query, label: the detection.
        any_query: the nearest query counts, not this one alone: for two stages, where another image orders the
            proposals anew.

    Returns:
        Masks `[N, rows, columns]` to errors `[N]`.
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
    """(rows, columns) of nearly square cells, `longer` of them along the longer side of a (height, width)."""
    height, width = size
    return max(1, round(longer * height / max(size))), max(1, round(longer * width / max(size)))


def _blocks(cells: tuple[int, int], side: int) -> Tensor:
    rows, columns = torch.arange(cells[0]) // side, torch.arange(cells[1]) // side
    number = rows[:, None] * (int(columns[-1]) + 1) + columns
    return number == torch.arange(int(number.max()) + 1)[:, None, None]


def _halvings(count: int) -> list[int]:
    return [count] if count == 1 else [count, *_halvings(count // 2)]
