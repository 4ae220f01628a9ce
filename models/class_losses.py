"""Class losses. All but the focal loss teach the score of a pair how well its box fits: q, the IoU of the pair.

p is the probability of a query's class, BCE(p, t) the cross entropy with a target t. Each loss adds up a term for
pairs, at the class of their object, and one for everything else, the background. No gradient runs through q or a
target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import MatchedGroup


@dataclass(frozen=True)
class FocalLoss:
    """Sigmoid focal loss over all queries and classes (arXiv 1708.02002, equation 5).

    Attributes:
        weight: what the loss is multiplied by, unless another weight is asked for (arXiv 2010.04159, appendix A.4).
        alpha: share of positives.
        gamma: focusing exponent.
    """

    weight: ClassVar[float] = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, group: MatchedGroup) -> Tensor:
        """`[N]`."""
        one_hot = group.at_labels(torch.ones_like(group.wanted[:, 0]))
        return group.over_queries(sigmoid_focal_loss(group.logits, one_hot, self.alpha, self.gamma))


@dataclass(frozen=True)
class VarifocalLoss:
    """Pairs q BCE(p, q), background alpha p^gamma BCE(p, 0) (arXiv 2008.13367, equation 2).

    Attributes:
        weight: see `FocalLoss`; RT-DETR's (arXiv 2304.08069).
        alpha: factor on the background.
        gamma: focusing exponent of the background.
    """

    weight: ClassVar[float] = 1.0
    alpha: float = 0.75
    gamma: float = 2.0

    def __call__(self, group: MatchedGroup) -> Tensor:
        """`[N]`."""
        pairs = group.iou * cross_entropy(group.scored, group.iou)
        return add_up(group, pairs, lambda logits: self.alpha * background(logits, self.gamma))


@dataclass(frozen=True)
class AlignedLoss:
    """IA-BCE: pairs BCE(p, t), background p^gamma BCE(p, 0), where t = p^alpha q^(1 - alpha) (arXiv 2304.07527).

    Attributes:
        weight: see `FocalLoss`.
        alpha: how much the target leans on the score instead of the box.
        gamma: focusing exponent of the background.
        least: smallest target.
    """

    weight: ClassVar[float] = 1.0
    alpha: float = 0.25
    gamma: float = 2.0
    least: float = 0.01

    def __call__(self, group: MatchedGroup) -> Tensor:
        """`[N]`."""
        probability = group.scored.detach().sigmoid()
        target = (probability**self.alpha * group.iou ** (1 - self.alpha)).clamp(min=self.least)
        return add_up(group, cross_entropy(group.scored, target), lambda logits: background(logits, self.gamma))


@dataclass(frozen=True)
class MatchabilityLoss:
    """MAL: pairs BCE(p, q^gamma), background p^gamma BCE(p, 0) (arXiv 2412.04234, section 3).

    The factor p^gamma is a weight without a gradient, as in the authors' code.

    Attributes:
        weight: see `FocalLoss`.
        gamma: exponent of both.
    """

    weight: ClassVar[float] = 1.0
    gamma: float = 1.5

    def __call__(self, group: MatchedGroup) -> Tensor:
        """`[N]`."""
        pairs = cross_entropy(group.scored, group.iou**self.gamma)
        return add_up(group, pairs, lambda logits: background(logits, self.gamma, logits.detach()))


@dataclass(frozen=True)
class PositionLoss:
    """Pairs alpha |t - p|^gamma BCE(p, t), background that of the focal loss (arXiv 2304.04742, equation 3).

    The target t is q^2, scaled so that the best pair of each image and layer has 1, as the paper does with 300 queries.

    Attributes:
        weight: see `FocalLoss`.
        alpha: share of positives.
        gamma: focusing exponent.
    """

    weight: ClassVar[float] = 6.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, group: MatchedGroup) -> Tensor:
        """`[N]`."""
        quality = group.iou**2
        target = quality / (best_of_image(group, quality) + 1e-8)  # where no box overlaps, all targets are 0
        miss = (target - group.scored.sigmoid()).abs()
        pairs = self.alpha * miss**self.gamma * cross_entropy(group.scored, target)
        return add_up(group, pairs, lambda logits: (1 - self.alpha) * background(logits, self.gamma))


ClassLoss = FocalLoss | VarifocalLoss | AlignedLoss | MatchabilityLoss | PositionLoss


def add_up(group: MatchedGroup, pairs: Tensor, elsewhere: Callable[[Tensor], Tensor]) -> Tensor:
    """Loss of each layer, `[N]`: a term for pairs, and one of the logit for all other queries and classes.

    The latter is computed everywhere and taken back at pairs, which needs no targets as large as the logits.

    Args:
        group: the group.
        pairs: `[P]`.
        elsewhere: elementwise, of logits.
    """
    return group.over_queries(elsewhere(group.logits)) + group.per_layer(pairs - elsewhere(group.scored))


def background(logits: Tensor, gamma: float, weighting: Tensor | None = None) -> Tensor:
    """p^gamma BCE(p, 0), elementwise; p^gamma is that of the logits `weighting`, if they are given."""
    probability = (logits if weighting is None else weighting).sigmoid()
    return probability**gamma * F.softplus(logits, threshold=40)  # beyond the threshold it is linear: exact in fp64


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """BCE(p, t), elementwise."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def best_of_image(group: MatchedGroup, values: Tensor) -> Tensor:
    """For each pair, the largest of the values `[P]` of its image and layer; those that do not count are none."""
    matches, (layers, images) = group.matches, group.logits.shape[:2]
    place = matches.layer * images + matches.image
    counted = values if matches.valid is None else values.where(matches.valid, 0.0)
    return values.new_zeros(layers * images).scatter_reduce(0, place, counted, "amax")[place]


def sigmoid_focal_loss(logits: Tensor, one_hot: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5), elementwise: `[..., C]` -> `[..., C]`."""
    probability = logits.sigmoid()
    miss = probability + one_hot - 2 * probability * one_hot  # 1 - p of the truth
    balance = (1 - alpha) + (2 * alpha - 1) * one_hot
    return balance * cross_entropy(logits, one_hot) * miss**gamma
