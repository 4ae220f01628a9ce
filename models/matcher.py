"""Hungarian matching of every layer at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert

from models.predictions import Assignment, PredictionGroup
from util.errors import NonFinite
from util.objects import Objects


@dataclass
class Matches:
    """Matched pairs of a group of layers, four index vectors of one length and device.

    Attributes:
        layer, image, query: index the predictions `[N, B, Q]`.
        object: index the concatenated objects of the batch.
        valid: which pairs count; None for all.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    object: Tensor
    valid: Tensor | None = None


def every_layer(assignment: Assignment, layers: int) -> Matches:
    """The pairs of an assignment in each of so many layers."""
    pairs = len(assignment.query)
    layer = torch.arange(layers, device=assignment.query.device).repeat_interleave(pairs)
    image, query, of = (t.repeat(layers) for t in (assignment.image, assignment.query, assignment.object))
    return Matches(layer, image, query, of, None if assignment.valid is None else assignment.valid.repeat(layers))


class HungarianMatcher:
    """One-to-one assignment of objects to queries with the least total cost (arXiv 2005.12872, section 3.1).

    A group may ask for more queries for each object: then every object takes part so many times.

    The cost of a pair is `class_cost * focal + l1_cost * L1 - giou_cost * GIoU`; the focal term is the focal loss of
    the object's class as a positive less that as a negative.

    Args:
        class_cost, l1_cost, giou_cost: weights.
        alpha, gamma: parameters of the focal term.
        modulation: exponent of (GIoU + 1) / 2, by which the probability in the focal term is multiplied (arXiv
            2304.04742, equation 4, where it is 0.5); 0 for none.
    """

    def __init__(
        self,
        class_cost: float = 2.0,
        l1_cost: float = 5.0,
        giou_cost: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        modulation: float = 0.0,
    ):
        self.class_cost, self.l1_cost, self.giou_cost = class_cost, l1_cost, giou_cost
        self.alpha, self.gamma, self.modulation = alpha, gamma, modulation

    @torch.no_grad()
    def __call__(self, groups: Sequence[PredictionGroup], objects: Sequence[Sequence[Objects]]) -> list[Matches]:
        """Match groups of layers, all with a single device-to-host transfer.

        Args:
            groups: the predictions; there may be none.
            objects: for each group, the objects of each image.

        Returns:
            The matches of each group. Of more objects than queries, repetitions counted, the cheapest are matched.

        Raises:
            NonFinite: a cost is not finite; names the image, the layer and the tensor at fault.
        """
        if not groups:
            return []
        costs = [self.cost(group, truth) for group, truth in zip(groups, objects)]
        lists = [shortlist(cost, group.repeats) for cost, group in zip(costs, groups)]
        finite = torch.stack([torch.isfinite(cost).all() for cost in costs]).all()
        parts = [part for pair in lists for part in pair if part is not None]
        host = torch.cat([part.flatten().to(costs[0].dtype) for part in (*parts, finite)]).cpu()  # sync: the only one
        if not host[-1]:
            for group, truth in zip(groups, objects):
                _explain_non_finite(group, truth)
            raise NonFinite("a matching cost overflowed although predictions and objects are finite")
        pieces = (h.view(part.shape).numpy() for h, part in zip(host.split([*map(Tensor.numel, parts), 1]), parts))
        matches = []
        for group, (short, rows), truth in zip(groups, lists, objects):
            block, queries = next(pieces), None if rows is None else next(pieces).astype(int)
            matches.append(_assign(block, queries, [len(o.labels) for o in truth], short.device, group.repeats))
        return matches

    def cost(self, group: PredictionGroup, objects: Sequence[Objects]) -> Tensor:
        """Costs `[N, B, Q, T]` in fp32 (fp64 for fp64 input), T the most objects of any image; the rest is zero.

        A query is only ever compared with the objects of its own image.
        """
        dtype = torch.promote_types(group.logits.dtype, torch.float32)
        most = max((len(o.labels) for o in objects), default=0)
        labels = group.logits.new_zeros(len(objects), most, dtype=torch.long)
        boxes = group.boxes.new_zeros(len(objects), most, 4, dtype=dtype)
        for i, of_image in enumerate(objects):
            labels[i, : len(of_image.labels)] = of_image.labels
            boxes[i, : len(of_image.labels)] = of_image.boxes
        with torch.autocast(group.logits.device.type, enabled=False):
            layers, batch, queries, _ = group.logits.shape
            logits = group.logits.to(dtype).gather(
                -1, labels[None, :, None].expand(layers, batch, queries, most)
            )  # [N, B, Q, T]: of each object's own class, before the sigmoid to compute no other
            predicted = group.boxes.to(dtype)[..., :, None, :]  # [N, B, Q, 1, 4]
            wanted = boxes[None, :, None]  # [1, B, 1, T, 4]
            giou, probability = generalized_iou(predicted, wanted), logits.sigmoid()
            if self.modulation:
                # GIoU is never below -1, not even by rounding.
                probability = probability * ((giou + 1) / 2) ** self.modulation
            cost = self.class_cost * focal_cost(probability, self.alpha, self.gamma)
            cost = cost + self.l1_cost * (predicted - wanted).abs().sum(-1)
            return cost - self.giou_cost * giou


def focal_cost(probability: Tensor, alpha: float, gamma: float) -> Tensor:
    """What calling a class present costs in focal loss, less what calling it absent costs; elementwise."""
    positive = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return positive - negative


def generalized_iou(a: Tensor, b: Tensor, least: float = 1e-12) -> Tensor:
    """GIoU (arXiv 1902.09630) of boxes cxcywh that broadcast against each other: `[..., 4]` -> `[...]`.

    Areas count as `least` at least, a millionth of the image wide and high, so that empty boxes give no NaN. All others
    are exact: a number added to every area would lower the IoU of thin ones.
    """
    a, b = box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy")
    intersection, union = _areas(a, b)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = _area(outer.clamp(min=0))
    return intersection / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


def plain_iou(a: Tensor, b: Tensor, least: float = 1e-12) -> Tensor:
    """IoU of boxes as in `generalized_iou`: `[..., 4]` -> `[...]`."""
    intersection, union = _areas(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy"))
    return intersection / union.clamp(min=least)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes xyxy, `[..., 4]` -> `[...]` each."""
    inner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = _area(inner.clamp(min=0))
    return intersection, _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - intersection


def _area(size: Tensor) -> Tensor:
    """Width times height, `[..., 2]` -> `[...]`. The derivative of `prod` would ask the device for zeros, and wait."""
    return size[..., 0] * size[..., 1]


def shortlist(cost: Tensor, repeats: int = 1, longest: int = 1024) -> tuple[Tensor, Tensor | None]:
    """The queries that the cheapest assignment can use, where there are many more of them than objects.

    T objects never need a query that is not among the T cheapest of one of them: one of those T is free for it. Of the
    ten thousand and more proposals of a two-stage detector, this leaves a few hundred to transfer and to solve. With
    each object k times, it is the k T cheapest.

    Args:
        cost: `[N, B, Q, T]`.
        repeats: how many queries k each object is matched to.
        longest: queries that are few enough as they are.

    Returns:
        Costs `[N, B, R, T]`, R = k T T, and the query of each row `[N, B, R]`, some of them several times; the argument
        itself and None where the queries are few.
    """
    queries, objects = cost.shape[2:]
    if queries <= max(longest, 2 * repeats * objects * objects):
        return cost, None
    rows = cost.topk(repeats * objects, dim=2, largest=False).indices.flatten(2)  # [N, B, k*T*T]
    return cost.gather(2, rows[..., None].expand(-1, -1, -1, objects)), rows


def _assign(
    costs: np.ndarray, queries: np.ndarray | None, counts: list[int], device: torch.device, repeats: int = 1
) -> Matches:
    """Solve every `[R, T]` block of `costs` `[N, B, R, T]`, the first `counts[b]` columns of it.

    Args:
        costs: see above.
        queries: `[N, B, R]`, which query each row is of; None if row r is of query r.
        counts: objects of each image.
        device: device of the result.
        repeats: how many queries each object is matched to. Its columns are repeated here, the last moment, for on the
            way they would take so many times the memory.
    """
    offsets = [sum(counts[:i]) for i in range(len(counts))]
    found = []
    for layer in range(costs.shape[0]):
        for image, count in enumerate(counts):
            block = costs[layer, image, :, :count]
            if repeats > 1:
                block = np.tile(block, (1, repeats))
            if queries is None:
                chosen, objects = linear_sum_assignment(block)
            else:
                once, first = np.unique(queries[layer, image], return_index=True)
                chosen, objects = linear_sum_assignment(block[first])
                chosen = once[chosen]
            found += [(layer, image, int(q), offsets[image] + int(t) % count) for q, t in zip(chosen, objects)]
    indices = torch.tensor(found, dtype=torch.long).reshape(-1, 4).to(device, non_blocking=True)
    return Matches(*indices.unbind(1))


def _explain_non_finite(group: PredictionGroup, objects: Sequence[Objects]) -> None:
    for i, of_image in enumerate(objects):
        tensors = {f"logits of layer {n}": group.logits[j, i] for j, n in enumerate(group.names)}
        tensors |= {f"boxes of layer {n}": group.boxes[j, i] for j, n in enumerate(group.names)}
        tensors["boxes of the objects"] = of_image.boxes
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise NonFinite(
                    f"a matching cost of image {of_image.image_id} is not finite: its {name} hold NaN or infinity; "
                    "lower train.lr, keep train.clip_norm above 0, or check the image with check-data"
                )
