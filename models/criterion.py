"""The losses of every layer at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detector import Predictions
from models.matcher import HungarianMatcher, LayerPredictions, Matches, Target, generalized_iou


@dataclass
class ClassAgnosticTarget:
    """A target whose objects all have label 0, for proposals."""

    boxes: Tensor
    labels: Tensor
    image_id: int


class Criterion:
    """Focal, L1 and GIoU loss of matched predictions (arXiv 2010.04159, appendix A.4; 1708.02002 for the focal loss).

    All decoder layers, and the proposals of a two-stage detector, are matched and penalised together.

    Args:
        matcher: assigns objects to queries.
        class_weight, l1_weight, giou_weight: weights of the three losses.
        alpha, gamma: of the focal loss.
        auxiliary: penalise every decoder layer; otherwise only the last one (and the proposals).
        mimic_weight: weight of the losses of feature mimicking, where predictions have them.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        auxiliary: bool = True,
        mimic_weight: float = 0.1,
    ):
        self.matcher = matcher
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.alpha, self.gamma = alpha, gamma
        self.auxiliary, self.mimic_weight = auxiliary, mimic_weight

    def __call__(
        self, predictions: Predictions, targets: Sequence[Target], num_boxes: float | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses by name and layer; their sum is what training minimises.

        Args:
            predictions: of the model.
            targets: the objects of each image; an image may have none, or more than there are queries.
            num_boxes: what to divide by: objects of the whole effective batch. None counts `targets`. At least 1.

        Returns:
            `{"class/decoder.0": ..., "l1/decoder.0": ..., "giou/decoder.0": ..., ..., "class/proposals": ...}`,
            scalars in fp32. Adding them up needs no transfer to the host.
        """
        if num_boxes is None:
            num_boxes = sum(len(t.labels) for t in targets)
        num_boxes = max(float(num_boxes), 1.0)

        groups, objects = [decoder_layers(predictions, self.auxiliary)], [targets]
        if predictions.proposals is not None:
            proposals = predictions.proposals
            groups.append(LayerPredictions(["proposals"], proposals.logits[None], proposals.boxes[None]))
            objects.append([ClassAgnosticTarget(t.boxes, torch.zeros_like(t.labels), t.image_id) for t in targets])

        losses = {}
        for group, of_images, matches in zip(groups, objects, self.matcher(groups, objects)):
            with torch.autocast(group.logits.device.type, enabled=False):
                by_name = self._losses(group, of_images, matches)
            for name, by_layer in by_name.items():
                for layer, loss in zip(group.names, by_layer / num_boxes):
                    losses[f"{name}/{layer}"] = loss
        # Divided by the objects, not by the regions of a process: the sum must not depend on how a batch is spread.
        for name, total in (predictions.mimicry or {}).items():
            losses[name] = self.mimic_weight * total / num_boxes
        return losses

    def _losses(self, group: LayerPredictions, targets: Sequence[Target], matches: Matches) -> dict[str, Tensor]:
        """Weighted sums over a group's queries, one `[N]` for each loss."""
        dtype = torch.promote_types(group.logits.dtype, torch.float32)
        logits, boxes = group.logits.to(dtype), group.boxes.to(dtype)
        labels = torch.cat([t.labels for t in targets])[matches.target]
        wanted = torch.cat([t.boxes for t in targets])[matches.target].to(dtype)

        one_hot = torch.zeros_like(logits)
        one_hot[matches.layer, matches.image, matches.query, labels] = 1.0
        focal = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma).sum((1, 2, 3))

        predicted = boxes[matches.layer, matches.image, matches.query]  # [pairs, 4]
        pairs = torch.stack([(predicted - wanted).abs().sum(-1), 1 - generalized_iou(predicted, wanted)], -1)
        sums = pairs.new_zeros(len(group.names), 2).index_add(0, matches.layer, pairs)
        return {
            "class": self.class_weight * focal,
            "l1": self.l1_weight * sums[:, 0],
            "giou": self.giou_weight * sums[:, 1],
        }


def decoder_layers(predictions: Predictions, auxiliary: bool = True) -> LayerPredictions:
    """The decoder layers whose predictions are penalised, under the names `decoder.0`, `decoder.1`, ..."""
    first = 0 if auxiliary else len(predictions.logits) - 1
    names = [f"decoder.{i}" for i in range(first, len(predictions.logits))]
    return LayerPredictions(names, predictions.logits[first:], predictions.boxes[first:])


def sigmoid_focal_loss(logits: Tensor, one_hot: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5), elementwise: `[..., C]` -> `[..., C]`."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    miss = probability + one_hot - 2 * probability * one_hot  # 1 - p of the truth
    balance = (1 - alpha) + (2 * alpha - 1) * one_hot
    return balance * cross_entropy * miss**gamma
