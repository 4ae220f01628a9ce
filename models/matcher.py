"""Hungarian matching of every layer at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.pair_costs import PairCost, runs_of_images
from models.predictions import Assignment, PredictionGroup
from util.errors import NonFinite
from util.objects import Objects

# Costs that are computed, and on a CPU solved, together; those of an image and all its layers may be more.
BLOCK = 2**22
Block = tuple[int, range]  # a group by number, and images in a row
Pairs = tuple[np.ndarray, np.ndarray]  # queries, and the objects of their image, by number


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
        self.pair_cost = PairCost(class_cost, l1_cost, giou_cost, alpha, gamma, modulation)

    @torch.no_grad()
    def __call__(self, groups: Sequence[PredictionGroup], objects: Sequence[Sequence[Objects]]) -> list[Matches]:
        """Match groups of layers, all with a single device-to-host transfer.

        On a CPU, which has nothing to transfer, crowds are matched a few images at a time: what is held of their costs
        does not grow with the batch.

        Args:
            groups: the predictions; there may be none.
            objects: for each group, the objects of each image.

        Returns:
            The matches of each group. Of more objects than queries, repetitions counted, the cheapest are matched.

        Raises:
            NonFinite: a cost is not finite; names the image, the layer and the tensor at fault.
        """
        counts = [[len(o.labels) for o in truth] for truth in objects]
        found: list[list[list[Pairs]]] = [[[] for _ in group.names] for group in groups]
        for blocks in _together(groups, counts):
            for (i, images), (costs, queries) in zip(blocks, self._on_host(blocks, groups, objects)):
                of_images = counts[i][images.start : images.stop]
                for pairs, more in zip(found[i], _solve(costs, queries, of_images, groups[i].repeats)):
                    pairs += more
        return [_matches(pairs, n, group.logits.device) for pairs, n, group in zip(found, counts, groups)]

    def _on_host(
        self, blocks: Sequence[Block], groups: Sequence[PredictionGroup], objects: Sequence[Sequence[Objects]]
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """For each block its costs `[N, b, R, T]` and the query of each row `[N, b, R]`; None if row r is query r."""
        lists, finite = [], []
        for i, images in blocks:
            cost = self._cost(groups[i], objects[i], images)
            finite.append(torch.isfinite(cost).all())
            lists.append(shortlist(cost, groups[i].repeats))
        # The memory of the costs is laid out object by object.
        parts = [part for cost, rows in lists for part in (cost.mT, rows) if part is not None]
        flags = torch.stack(finite).all()
        host = torch.cat([part.flatten().to(lists[0][0].dtype) for part in (*parts, flags)]).cpu()  # sync: the only one
        if not host[-1]:
            for group, truth in zip(groups, objects):
                _explain_non_finite(group, truth)
            raise NonFinite("a matching cost overflowed although predictions and objects are finite")
        pieces = (h.view(part.shape).numpy() for h, part in zip(host.split([*map(Tensor.numel, parts), 1]), parts))
        return [(next(pieces).swapaxes(2, 3), None if rows is None else next(pieces).astype(int)) for _, rows in lists]

    @torch.no_grad()
    def cost(self, group: PredictionGroup, objects: Sequence[Objects]) -> Tensor:
        """Costs `[N, B, Q, T]` in fp32 (fp64 for fp64 input), T the most objects of any image.

        A query is only ever compared with the objects of its own image; what is beyond those means nothing.
        """
        return self._cost(group, objects, range(len(objects)))

    def _cost(self, group: PredictionGroup, objects: Sequence[Objects], images: range) -> Tensor:
        with torch.autocast(group.logits.device.type, enabled=False):
            return self.pair_cost(group, objects, images).mT


def _together(groups: Sequence[PredictionGroup], counts: Sequence[Sequence[int]]) -> Iterator[list[Block]]:
    """Blocks of images that go to the host in one transfer: on a GPU all, on a CPU about `BLOCK` costs."""
    waiting: list[Block] = []
    held = 0
    for i, (group, of_images) in enumerate(zip(groups, counts)):
        rows = len(group.logits) * group.logits.shape[2]
        for images in runs_of_images(of_images, rows, BLOCK):
            size = rows * sum(of_images[images.start : images.stop])
            if waiting and held + size > BLOCK and group.logits.device.type == "cpu":
                yield waiting
                waiting, held = [], 0
            waiting.append((i, images))
            held += size
    if waiting:
        yield waiting


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


def _solve(costs: np.ndarray, queries: np.ndarray | None, counts: Sequence[int], repeats: int = 1) -> list[list[Pairs]]:
    """Solve every `[R, T]` block of `costs` `[N, B, R, T]`, the first `counts[b]` columns of it.

    Args:
        costs: see above.
        queries: `[N, B, R]`, which query each row is of; None if row r is of query r.
        counts: objects of each image.
        repeats: how many queries each object is matched to. Its columns are repeated here, the last moment, for on the
            way they would take so many times the memory.

    Returns:
        The pairs of each layer and image.
    """
    found: list[list[Pairs]] = []
    for layer, of_layer in enumerate(costs):
        found.append([])
        for image, (of_image, count) in enumerate(zip(of_layer, counts)):
            block = of_image[:, :count]
            if repeats > 1:
                block = np.tile(block, (1, repeats))
            if queries is None:
                chosen, objects = linear_sum_assignment(block)
            else:
                once, first = np.unique(queries[layer, image], return_index=True)
                chosen, objects = linear_sum_assignment(block[first])
                chosen = once[chosen]
            found[-1].append((chosen, objects % max(1, count)))
    return found


def _matches(found: Sequence[Sequence[Pairs]], counts: Sequence[int], device: torch.device) -> Matches:
    """The pairs of each layer and image, images of so many objects, as index vectors on a device."""
    offsets = np.cumsum([0, *counts])
    each = [
        (np.full(len(queries), layer), np.full(len(queries), image), queries, objects + offsets[image])
        for layer, of_layer in enumerate(found)
        for image, (queries, objects) in enumerate(of_layer)
    ]
    indices = np.concatenate([np.zeros((4, 0), int), *map(np.stack, each)], axis=1)
    return Matches(*torch.from_numpy(indices).to(device, non_blocking=True).unbind(0))


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
