"""Losses of boxes whose edges are distributions (D-FINE, arXiv 2410.13842). Groups without distributions have none."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.distribution import edge_offsets, nearest_bins
from models.losses import MatchedGroup


def fine_grained_loss(group: MatchedGroup) -> Tensor | None:
    """Fine-grained localisation loss: `[N]` (section 4.1).

    For each edge of a pair it is the cross entropy with the two bins that the object's edge lies between, each
    weighted by how near it is. Edges are added up, and a pair counts by the IoU of its boxes.
    """
    if group.distributions is None:
        return None
    matches = group.matches
    start = group.distributions.start[matches.image, matches.query].detach()
    below, share = nearest_bins(edge_offsets(group.wanted, start))
    chances = group.distributions.logits[matches.layer, matches.image, matches.query].log_softmax(-1)  # [P, 4, 33]
    low, high = chances.gather(-1, torch.stack([below, below + 1], -1)).unbind(-1)
    return group.per_layer(-group.iou * ((1 - share) * low + share * high).sum(-1))


@dataclass(frozen=True)
class DistillationLoss:
    """Self-distillation: what the last layer says of the edges teaches the layers before it (section 4.2).

    For each query it is T^2 KL(last layer || layer), the mean of its edges. That of a pair counts by the IoU of its
    boxes, of any other query by its score in the last layer. Of an image with m pairs and u other queries the former
    are added up, and of the latter m times the mean; their shares are as sqrt(m) to sqrt(u).

    In the authors' code m and u are those of the batch, and all layers have the pairs of any. Here they are those of
    the image and the layer, for nothing may depend on how a batch is spread. An image without pairs teaches nothing.

    Attributes:
        temperature: T.
    """

    temperature: float = 5.0

    def __call__(self, group: MatchedGroup) -> Tensor | None:
        """`[N]`; nothing for the last layer."""
        if group.distributions is None:
            return None
        logits = group.distributions.logits / self.temperature
        teacher = logits[-1:].detach().log_softmax(-1)
        apart = (teacher.exp() * (teacher - logits.log_softmax(-1))).sum(-1).mean(-1)  # [N, B, q]
        return group.over_queries((self.temperature**2 * apart * self.factors(group))[..., None])

    @staticmethod
    @torch.no_grad()
    def factors(group: MatchedGroup) -> Tensor:
        """How much each query counts: `[N, B, q]`."""
        matches, shape = group.matches, group.logits.shape[:3]
        at = (matches.layer, matches.image, matches.query)
        ones = torch.ones_like(group.iou) if matches.valid is None else matches.valid.to(group.iou.dtype)
        paired, iou = (group.iou.new_zeros(shape).index_put(at, v * ones, accumulate=True) for v in (ones, group.iou))
        others = 1 - paired if group.penalised is None else (1 - paired) * group.penalised
        m, u = (counted.sum(-1, keepdim=True) for counted in (paired, others))  # [N, B, 1]
        mean = others * group.logits[-1].amax(-1).sigmoid() / u.clamp(min=1)
        factors = (m.sqrt() * iou + u.sqrt() * m * mean) / (m.sqrt() + u.sqrt()).clamp(min=1)
        factors[-1] = 0
        return factors
