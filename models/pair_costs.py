"""What it costs to match each query with each object, a few pairs at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.overlaps import crossed_iou
from models.predictions import PredictionGroup
from util.objects import Objects

# Pairs whose costs are computed at once. On a CPU what is computed of them stays in its caches; a GPU wants many.
AT_ONCE = {"cpu": 2**17}
AT_ONCE_ELSEWHERE = 2**22


@dataclass(frozen=True)
class PairCost:
    """`class_cost * focal + l1_cost * L1 - giou_cost * GIoU` of a query and an object.

    Attributes:
        class_cost, l1_cost, giou_cost: weights.
        alpha, gamma: parameters of the focal term.
        modulation: exponent of (GIoU + 1) / 2, by which the probability in the focal term is multiplied; 0 for none.
    """

    class_cost: float
    l1_cost: float
    giou_cost: float
    alpha: float
    gamma: float
    modulation: float

    def __call__(self, group: PredictionGroup, objects: Sequence[Objects], images: range) -> Tensor:
        """Costs `[N, b, T, Q]` of b images in a row, T the most objects of any of them.

        They are in fp32 (fp64 for fp64 input). What is beyond an image's objects means nothing. The queries come last,
        for there are more of them than objects. Beside the result, it takes memory for some pairs alone.

        Args:
            group: the predictions `[N, B, Q]`.
            objects: of all images.
            images: which images.
        """
        part = slice(images.start, images.stop)
        logits, labels, predicted, wanted = _side_by_side(group, objects, part)
        layers, _, _, queries = predicted.shape[1:]
        _, most = labels.shape
        costs = logits.new_empty(layers, len(images), most, queries)
        few_classes = logits.shape[-1] <= most
        table = self._of_logits(logits.mT.contiguous()) if few_classes else logits
        pairs = AT_ONCE.get(logits.device.type, AT_ONCE_ELSEWHERE)
        step = max(1, pairs // max(1, layers * len(images) * queries))
        for start in range(0, most, step):
            some = slice(start, start + step)
            rows = _rows(table, labels[:, some]) if few_classes else self._of_logits(_columns(table, labels[:, some]))
            costs[:, :, some] = self._of_pairs(rows, predicted, wanted[..., some, :])
        return costs

    def _of_logits(self, logits: Tensor) -> Tensor:
        """The part of the cost that a logit alone decides; with modulation that is the probability."""
        probability = logits.sigmoid()
        return probability if self.modulation else self.class_cost * focal_cost(probability, self.alpha, self.gamma)

    def _of_pairs(self, rows: Tensor, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Costs `[N, b, t, Q]`, from `_of_logits` of each pair and boxes `[4, N, b, 1, Q]`, `[4, 1, b, t, 1]`."""
        giou = crossed_iou(predicted, wanted)
        if self.modulation:
            # GIoU is never below -1, not even by rounding.
            probability = rows * ((giou + 1) / 2) ** self.modulation
            rows = self.class_cost * focal_cost(probability, self.alpha, self.gamma)
        distance = (predicted[0] - wanted[0]).abs_()
        for plane in range(1, 4):
            distance.add_((predicted[plane] - wanted[plane]).abs_())
        return rows.add_(distance.mul_(self.l1_cost)).sub_(giou.mul_(self.giou_cost))


def focal_cost(probability: Tensor, alpha: float, gamma: float) -> Tensor:
    """What calling a class present costs in focal loss, less what calling it absent costs; elementwise."""
    positive = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return positive - negative


def runs_of_images(counts: Sequence[int], rows: int, most: int) -> list[range]:
    """Images in a row, as many as have at most so many pairs together, padded to the most objects; at least one.

    Args:
        counts: objects of each image.
        rows: predictions of each image, of all layers.
        most: pairs of a run.
    """
    runs, start, widest = [], 0, 0
    for image, count in enumerate(counts):
        widest = max(widest, count)
        if image > start and (image + 1 - start) * rows * widest > most:
            runs.append(range(start, image))
            start, widest = image, count
    return [*runs, range(start, len(counts))]


def _side_by_side(
    group: PredictionGroup, objects: Sequence[Objects], part: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits `[N, b, Q, C]`, labels `[b, T]`, and boxes in planes: `[4, N, b, 1, Q]` and `[4, 1, b, T, 1]`."""
    dtype, objects = torch.promote_types(group.logits.dtype, torch.float32), objects[part]
    most = max((len(o.labels) for o in objects), default=0)
    labels = group.logits.new_zeros(len(objects), most, dtype=torch.long)
    boxes = group.boxes.new_zeros(len(objects), most, 4, dtype=dtype)
    for i, of_image in enumerate(objects):
        labels[i, : len(of_image.labels)] = of_image.labels
        boxes[i, : len(of_image.labels)] = of_image.boxes
    predicted = group.boxes[:, part].to(dtype).permute(3, 0, 1, 2).contiguous()
    wanted = boxes.permute(2, 0, 1).contiguous()
    return group.logits[:, part].to(dtype), labels, predicted[..., None, :], wanted[:, None, ..., None]


def _rows(table: Tensor, labels: Tensor) -> Tensor:
    """Each object's row of a table of classes: `[N, b, C, Q]` and `[b, t]` -> `[N, b, t, Q]`."""
    images = torch.arange(table.shape[1], device=labels.device)[:, None]
    return table[:, images, labels]


def _columns(logits: Tensor, labels: Tensor) -> Tensor:
    """Each object's logits of all queries: `[N, b, Q, C]` and `[b, t]` -> `[N, b, t, Q]`."""
    layers, _, queries, _ = logits.shape
    of_objects = labels[None, :, None].expand(layers, -1, queries, -1)
    return logits.gather(-1, of_objects).mT.contiguous()
