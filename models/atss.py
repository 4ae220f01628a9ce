"""Adaptive training sample selection: which tokens stand for which object, many for one, as in dense detectors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.memory import Memory
from models.overlaps import plain_iou
from models.predictions import Assignment
from util.objects import Objects

CANDIDATES = 9  # of each level, k in the paper
USUAL_SHARE = 0.2  # of an object's candidates that are positive, as the paper finds (section 3.2)
RESCUES = 4  # rounds in which objects without a token bid for one


@torch.no_grad()
def assign_tokens(
    memory: Memory, anchors: Tensor, usable: Tensor, objects: Sequence[Objects]
) -> tuple[Assignment, Tensor]:
    """Give each object its tokens by algorithm 1 of arXiv 1912.02424 (section 3.2), without waiting for the device.

    Of each level, the 9 tokens whose centres are closest to the object's are candidates. Positive are those whose
    anchors overlap the object by at least mean + standard deviation of the candidates' IoUs, and whose centres lie
    inside it. A token that is positive for several objects goes to the one that it overlaps most (of equal ones, the
    first). The deviation is that of a sample, as in the paper's code.

    The paper leaves tiny objects, inside which no centre lies, without a token. Here each object that has none takes
    the best of its candidates that nobody has: the one that overlaps most, and of about equal ones the nearest. Where
    several want one, they bid again, up to 4 times.

    Args:
        memory: levels and padding; the values of the tokens do not matter.
        anchors: `[B, S, 4]`, a box cxcywh around each token, in [0, 1] of the unpadded image.
        usable: `[B, S]`, False for tokens that must not be positive.
        objects: the objects of each image, T in all.

    Returns:
        All `T * K` pairs of objects and candidates, of which the positive ones are valid; and a weight for each image,
        `[B]`: objects over positives, so that losses divided by the number of objects are divided by that of positives
        in each image, as in the paper. An image without objects weighs as if its positives were as many as usual.
    """
    batch, tokens = usable.shape
    counts = [len(o.labels) for o in objects]
    total = sum(counts)
    image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], dtype=torch.long)
    image = image.to(anchors.device, non_blocking=True)  # [T]
    boxes = torch.cat([o.boxes for o in objects]).to(anchors.dtype)  # [T, 4]

    token, distance = candidates(memory, anchors, usable, boxes, image)  # [T, K] each
    around = anchors[image[:, None], token]  # [T, K, 4]
    iou = plain_iou(around, boxes[:, None])
    real = distance.isfinite()
    positive = real & (iou >= threshold(iou, real)) & inside(around[..., :2], boxes[:, None])

    flat = image[:, None] * tokens + token  # [T, K], of the tokens of all images
    owner = award(flat.new_full((batch * tokens,), total), flat, positive, iou)
    for _ in range(RESCUES):
        owner = award(owner, flat, bids(owner, flat, real, iou, distance), iou)

    number = torch.arange(total, device=anchors.device)[:, None].expand_as(flat)
    valid = (owner[flat] == number) & real
    assignment = Assignment(*(t.flatten() for t in (image[:, None].expand_as(flat), token, number, valid)))
    return assignment, image_weights(assignment, counts, len(memory.spatial_shapes), anchors)


def candidates(memory: Memory, anchors: Tensor, usable: Tensor, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens closest to each object, by the distance of centres in pixels: lines 3 to 6 of the algorithm.

    Args:
        memory, anchors, usable: see `assign_tokens`.
        boxes: `[T, 4]`, cxcywh.
        image: `[T]`, index in the batch.

    Returns:
        Tokens and distances `[T, K]`, K the sum of min(9, tokens) over levels; infinite for unusable tokens.
    """
    height, width = memory.spatial_shapes[0]
    size = (memory.valid_ratios[:, 0] * memory.valid_ratios.new_tensor([width, height])).round()  # [B, 2]
    found, distances, start = [], [], 0
    for height, width in memory.spatial_shapes:
        level = slice(start, start + height * width)
        offsets = (anchors[image, level, :2] - boxes[:, None, :2]) * size[image][:, None]
        distance = offsets.square().sum(-1).masked_fill(~usable[image, level], float("inf"))
        nearest = distance.topk(min(CANDIDATES, height * width), largest=False)
        found.append(nearest.indices + start)
        distances.append(nearest.values.sqrt())
        start += height * width
    return torch.cat(found, 1), torch.cat(distances, 1)


def threshold(iou: Tensor, real: Tensor) -> Tensor:
    """Mean + standard deviation of the IoUs `[T, K]` of real candidates: `[T, 1]`."""
    count = real.sum(1, keepdim=True)
    mean = iou.where(real, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    squares = (iou - mean).where(real, 0.0).square().sum(1, keepdim=True)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()


def award(owner: Tensor, flat: Tensor, claims: Tensor, iou: Tensor) -> Tensor:
    """Give each token to the object that claims it with the highest IoU.

    Args:
        owner: `[B * S]`, the object that has each token; T for none. No token that is claimed has one.
        flat: `[T, K]`, the token of each pair.
        claims: `[T, K]`, which pairs are claims.
        iou: `[T, K]`.
    """
    claim = iou.where(claims, -1.0)
    highest = claim.new_full(owner.shape, -1.0).scatter_reduce(0, flat.flatten(), claim.flatten(), "amax")
    number = torch.arange(len(flat), device=flat.device)[:, None]
    winner = number.where(claims & (claim == highest[flat]), len(flat))  # [T, K]
    return owner.scatter_reduce(0, flat.flatten(), winner.flatten(), "amin")


def bids(owner: Tensor, flat: Tensor, real: Tensor, iou: Tensor, distance: Tensor) -> Tensor:
    """For each object that has no token, the best candidate that nobody has: True once in its row of `[T, K]`."""
    total, count = flat.shape
    number = torch.arange(total, device=flat.device)[:, None]
    served = (owner[flat] == number).any(1, keepdim=True)
    free = real & (owner[flat] == total) & ~served
    overlap = iou.where(free, -1.0)
    # Anchors that hold a small object overlap it alike but for rounding: the nearest is meant.
    alike = free & (overlap >= 0.999 * overlap.amax(1, keepdim=True))
    best = distance.where(alike, float("inf")).argmin(1, keepdim=True)
    return alike & (torch.arange(count, device=flat.device) == best)


def image_weights(assignment: Assignment, counts: Sequence[int], levels: int, like: Tensor) -> Tensor:
    """Objects over positives of each image, `[B]`; without objects, one over the positives that one usually has."""
    assert assignment.valid is not None
    positives = like.new_zeros(len(counts)).index_add(0, assignment.image, assignment.valid.to(like.dtype))
    of_objects = torch.tensor(counts, dtype=like.dtype).to(like.device, non_blocking=True)
    usual = 1 / (USUAL_SHARE * CANDIDATES * levels)
    return (of_objects / positives.clamp(min=1)).where(of_objects > 0, usual)


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points `[..., 2]` lie inside boxes `[..., 4]` cxcywh, not on their edges: `[...]`."""
    return ((points - boxes[..., :2]).abs() < boxes[..., 2:] / 2).all(-1)
