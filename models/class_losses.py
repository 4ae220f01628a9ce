"""Class losses. All but the focal loss teach the score of a pair how well its box fits: q, the IoU of the pair.

p is the probability of a query's class, BCE(p, t) the cross entropy with a target t. Each loss adds up a term for
pairs, at the class of their object, and one for everything else, the background. No gradient runs through q or a
target. Of an image whose objects are listed for some classes alone (`MatchedGroup.exhaustive`), the background is that
of these classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.background import background, sum_and_pick
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

        def of_pairs(scored: Tensor) -> Tensor:
            return self.alpha * (1 - scored.sigmoid()) ** self.gamma * cross_entropy(scored, torch.ones_like(scored))

        return add_up(group, of_pairs, self.gamma, 1 - self.alpha)


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
        return add_up(group, lambda z: group.iou * cross_entropy(z, group.iou), self.gamma, self.alpha)


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

        def of_pairs(scored: Tensor) -> Tensor:
            probability = scored.detach().sigmoid()
            target = (probability**self.alpha * group.iou ** (1 - self.alpha)).clamp(min=self.least)
            return cross_entropy(scored, target)

        return add_up(group, of_pairs, self.gamma)


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
        return add_up(group, lambda z: cross_entropy(z, group.iou**self.gamma), self.gamma, weighted=True)


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

        def of_pairs(scored: Tensor) -> Tensor:
            return self.alpha * (target - scored.sigmoid()).abs() ** self.gamma * cross_entropy(scored, target)

        return add_up(group, of_pairs, self.gamma, 1 - self.alpha)


ClassLoss = FocalLoss | VarifocalLoss | AlignedLoss | MatchabilityLoss | PositionLoss


def add_up(
    group: MatchedGroup, of_pairs: Callable[[Tensor], Tensor], gamma: float, share: float = 1.0, weighted: bool = False
) -> Tensor:
    """Loss of each layer, `[N]`: a term for pairs, and share p^gamma BCE(p, 0) for all other queries and classes.

    The latter is computed everywhere and taken back at pairs, which needs no targets as large as the logits.

    Args:
        group: the group.
        of_pairs: from the logit of each pair to its term, `[P]`.
        gamma: focusing exponent of the background.
        share: factor on the background.
        weighted: p^gamma of the background is a weight, without a gradient.
    """
    matches = group.matches
    at = (matches.layer, matches.image, matches.query, group.labels)
    everywhere, scored = sum_and_pick(group.logits, gamma, weighted, group.factors, at, group.exhaustive)
    not_there = background(scored, gamma, scored.detach() if weighted else None)
    if group.exhaustive is not None:  # elsewhere there is nothing to take back
        counted = (group.exhaustive[matches.image] == group.labels[:, None]).any(1)
        not_there = not_there.where(counted, 0.0)
    return share * everywhere + group.per_layer(of_pairs(scored) - share * not_there)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """BCE(p, t), elementwise."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def best_of_image(group: MatchedGroup, values: Tensor) -> Tensor:
    """For each pair, the largest of the values `[P]` of its image and layer; those that do not count are none."""
    matches, (layers, images) = group.matches, group.logits.shape[:2]
    place = matches.layer * images + matches.image
    counted = values if matches.valid is None else values.where(matches.valid, 0.0)
    return values.new_zeros(layers * images).scatter_reduce(0, place, counted, "amax")[place]
