"""The losses of a group of predictions. A loss is a function of the matched group, and sums over its layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.matcher import Matches
from models.overlaps import generalized_iou, plain_iou
from models.predictions import Distributions, PredictionGroup
from util.objects import Objects


@dataclass
class MatchedGroup:
    """Predictions of N layers beside the objects that they stand for, in fp32 (fp64 for fp64 predictions).

    Attributes:
        logits: `[N, B, q, C]`.
        boxes: `[N, B, q, 4]`, cxcywh in [0, 1].
        matches: P pairs of a query and an object.
        labels: `[P]`, class of each pair's object.
        wanted: `[P, 4]`, box of each pair's object.
        weights: `[B]`, factor on the losses of each image; None for 1.
        penalised: `[B, q]`, which queries count; None for all. Those of pairs do.
        distributions: of what the boxes are the means, where they are.
        exhaustive: `[B, V]`, the classes of each image that count where they have no pair, filled up with -1; None for
            all.
    """

    logits: Tensor
    boxes: Tensor
    matches: Matches
    labels: Tensor
    wanted: Tensor
    weights: Tensor | None = None
    penalised: Tensor | None = None
    distributions: Distributions | None = None
    exhaustive: Tensor | None = None

    @classmethod
    def of(
        cls, group: PredictionGroup, objects: Sequence[Objects], matches: Matches, federated: bool = False
    ) -> "MatchedGroup":
        """A group and its matches put together.

        Args:
            group: the group.
            objects: of each image.
            matches: of the group with the objects.
            federated: whether classes without a pair count only where the objects are all listed, if objects say it.
        """
        dtype = torch.promote_types(group.logits.dtype, torch.float32)
        labels = torch.cat([o.labels for o in objects])[matches.object]
        wanted = torch.cat([o.boxes for o in objects])[matches.object].to(dtype)
        logits, boxes = group.logits.to(dtype), group.boxes.to(dtype)
        parts = group.weights, group.penalised, group.distributions
        return cls(logits, boxes, matches, labels, wanted, *parts, exhaustive_classes(objects) if federated else None)

    @cached_property
    def predicted(self) -> Tensor:
        """Predicted boxes of the pairs, `[P, 4]`."""
        return self.boxes[self.matches.layer, self.matches.image, self.matches.query]

    @cached_property
    def iou(self) -> Tensor:
        """IoU of the boxes of pairs, `[P]`, in [0, 1] and without a gradient."""
        return plain_iou(self.predicted.detach(), self.wanted).clamp(0, 1)

    @property
    def factors(self) -> Tensor | None:
        """Factor on each query, `[B, q]`; 0 for those that do not count. None for 1."""
        if self.penalised is None and self.weights is None:
            return None
        ones = torch.ones_like(self.logits[0, ..., 0])
        counted = ones if self.penalised is None else self.penalised.to(ones.dtype)
        return counted if self.weights is None else counted * self.weights[:, None]

    def per_layer(self, values: Tensor) -> Tensor:
        """Values of the pairs `[P]` added up by layer, `[N]`, each with the weight of its image."""
        matches = self.matches
        if matches.valid is not None:
            values = values.where(matches.valid, 0.0)
        if self.weights is not None:
            values = values * self.weights[matches.image]
        return values.new_zeros(len(self.logits)).index_add(0, matches.layer, values)

    def over_queries(self, values: Tensor) -> Tensor:
        """Values of all queries and classes `[N, B, q, C]` added up, `[N]`, each with the weight of its image."""
        if self.penalised is not None:
            values = values.where(self.penalised[..., None], 0.0)
        if self.weights is not None:
            values = values * self.weights[:, None, None]
        return values.sum((1, 2, 3))


def exhaustive_classes(objects: Sequence[Objects]) -> Tensor | None:
    """`[B, V]`, see `MatchedGroup.exhaustive`."""
    known = [o.exhaustive for o in objects if o.exhaustive is not None]
    return pad_sequence(known, batch_first=True, padding_value=-1.0) if len(known) == len(objects) else None


# To the sum over queries or pairs of each layer, `[N]`; None for a group without what it is about.
Loss = Callable[[MatchedGroup], Tensor | None]


def l1_loss(group: MatchedGroup) -> Tensor:
    """Distance of the boxes of pairs, centre and size in [0, 1]: `[N]`."""
    return group.per_layer((group.predicted - group.wanted).abs().sum(-1))


def giou_loss(group: MatchedGroup) -> Tensor:
    """1 - GIoU (arXiv 1902.09630) of the boxes of pairs: `[N]`."""
    return group.per_layer(1 - generalized_iou(group.predicted, group.wanted))
