"""Greedy non-maximum suppression that never waits for a GPU: its results have one size whatever is suppressed."""

import torch
from torch import Tensor
from torchvision.ops import box_convert

BEYOND = 2**31  # more than there are boxes


@torch.no_grad()
def distinct_first(boxes: Tensor, threshold: float) -> Tensor:
    """Order boxes so that those that survive suppression come first (distinct queries, arXiv 2303.12776).

    Args:
        boxes: `[B, N, 4]` cxcywh, the best first.
        threshold: IoU above which a survivor suppresses a later box.

    Returns:
        Indices `[B, N]`: the survivors, then the suppressed, both in the order in which they were.
    """
    suppressed = ~survivors(overlaps(boxes), threshold)
    # Keys that differ, so that every sort is stable: ONNX, as torch writes it, has no form of one that says so, nor of
    # a product with the number of boxes where that depends on the image.
    keys = suppressed * BEYOND + torch.arange(boxes.shape[1], device=boxes.device)
    return keys.argsort(dim=1)


def survivors(iou: Tensor, threshold: float, block: int = 64, rounds: int = 16) -> Tensor:
    """Which boxes greedy suppression keeps: each that no kept box before it overlaps too much.

    Blocks of boxes are decided in order. What the blocks before suppress is known. Within a block that sentence is an
    equation with one solution, found by iteration: all are kept at first, then in each round those that nothing kept
    so far suppresses. Round r is right for all boxes that hang on a chain of fewer than r suppressions, one of the
    next. Chains are short: in random order as the logarithm of the number of boxes (arXiv 1707.05124). In 1200 boxes
    drawn around 3 to 20 objects, also with scores that fall smoothly from token to token, blocks of 64 needed 8 rounds
    at a threshold of 0.8 and 12 at 0.9; around one object that falls off over the whole image, up to 20. The number of
    rounds is even, so boxes that are still undecided are kept. As many rounds as a block has boxes are always exact.

    Args:
        iou: `[B, N, N]` of boxes in order, the best first.
        threshold: see `distinct_first`.
        block: boxes that are decided together.
        rounds: rounds of the iteration.

    Returns:
        `[B, N]`, True for survivors.
    """
    suppresses = (iou > threshold).triu(1).to(torch.float32)  # [B, N, N]: the box of the row that of the column
    blocks: list[Tensor] = []
    with torch.autocast(iou.device.type, enabled=False):
        for start in range(0, iou.shape[1], block):
            columns = suppresses[:, :, start : start + block]
            within = columns[:, start : start + block].contiguous()
            free = within.new_ones(iou.shape[0], 1, within.shape[-1])
            if blocks:
                free = (torch.cat(blocks, -1) @ columns[:, :start] == 0).to(within.dtype)
            keep = free  # [B, 1, block], of zeros and ones
            for _ in range(rounds):
                keep = (keep @ within < free).to(within.dtype)
            blocks.append(keep)
    return torch.cat(blocks, -1)[:, 0] > 0


def overlaps(boxes: Tensor) -> Tensor:
    """IoU of all pairs of boxes: `[B, N, 4]` cxcywh -> `[B, N, N]`; 0 where both have no area."""
    left, top, right, bottom = box_convert(boxes, "cxcywh", "xyxy").unbind(-1)  # [B, N] each, faster than corners
    width, height = (
        (torch.minimum(end[:, :, None], end[:, None]) - torch.maximum(start[:, :, None], start[:, None])).clamp(min=0)
        for start, end in ((left, right), (top, bottom))
    )
    inner, area = width * height, (right - left) * (bottom - top)
    union = area[:, :, None] + area[:, None] - inner
    return inner / union.clamp(min=torch.finfo(union.dtype).tiny)
