"""Boxes from distributions of their edges: fine-grained distribution refinement of D-FINE (arXiv 2410.13842, 4.1).

An edge moves from a starting box by the mean of a distribution over bins. Each decoder layer adds to the logits of the
one before. Offsets are counted outwards, in quarters (1 / `SCALE`) of the starting box's width or height.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.heads import MLP, PredictionHead, update_box
from models.predictions import Distributions

BINS = 33
REACH, SCALE = 0.5, 4.0  # a and c: all bins but the outermost are within half a box, and most are near its edge


def bin_offsets(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The offset that each bin stands for, W(n) of the paper in the units of the authors' code: `[33]`.

    Beside zero they are s^i - 1 for i = 1, ..., 15, the last of which is ac; the outermost are +-2ac.
    """
    step = torch.arange(-(BINS // 2), BINS // 2 + 1, dtype=dtype, device=device)
    inner = torch.expm1(step.abs() * (math.log(REACH * SCALE + 1) / (BINS // 2 - 1)))
    return step.sign() * inner.where(step.abs() < BINS // 2, 2 * REACH * SCALE)


def decode_edges(logits: Tensor, start: Tensor) -> Tensor:
    """The box whose edges are where their distributions have their means.

    Args:
        logits: `[..., 4, 33]`, of left, top, right and bottom.
        start: `[..., 4]`, cxcywh, the box that edges move from.

    Returns:
        `[..., 4]`, cxcywh. It may reach beyond the image. Where edges have passed each other it is empty, but the
        gradient is as if it were not: otherwise nothing would part them again.
    """
    moves = (logits.softmax(-1) * bin_offsets(logits.dtype, logits.device)).sum(-1) / SCALE
    (before, after), (centre, size) = moves.chunk(2, -1), start.chunk(2, -1)
    grown = size * (1 + before + after)
    kept = grown + (grown.clamp(min=0) - grown).detach()
    return torch.cat([centre + size * (after - before) / 2, kept], -1)


def edge_offsets(boxes: Tensor, start: Tensor, least: float = 1e-6) -> Tensor:
    """How far the edges of boxes are from those of others, the inverse of `decode_edges`.

    Args:
        boxes: `[..., 4]`, cxcywh.
        start: `[..., 4]`, cxcywh; sizes count as `least` at least.
        least: see above.

    Returns:
        `[..., 4]`: left, top, right, bottom.
    """
    (centre, size), (origin, unit) = boxes.chunk(2, -1), start.chunk(2, -1)
    unit = unit.clamp(min=least)
    away, half = (centre - origin) / unit, size / unit / 2
    return SCALE * (torch.cat([half - away, half + away], -1) - 0.5)


def nearest_bins(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The two bins that an offset lies between.

    Args:
        offsets: of any shape; those beyond the outermost bins count as if they were there.

    Returns:
        The bin below, of 0 to 31, and the share of the one above, in [0, 1]; both of that shape.
    """
    values = bin_offsets(offsets.dtype, offsets.device)
    offsets = offsets.clamp(-2 * REACH * SCALE, 2 * REACH * SCALE)
    below = (torch.bucketize(offsets, values, right=True) - 1).clamp(0, BINS - 2)
    low, high = values[below], values[below + 1]
    return below, ((offsets - low) / (high - low)).clamp(0, 1)


class DistributionHead(nn.Module):
    """The class head and the distribution head of a decoder layer; in the first layer also that of the starting box.

    The distribution of each edge starts even, which moves nothing.

    Args:
        head: an ordinary head, whose class head is taken over.
        first: whether to take over its box head, too.
    """

    def __init__(self, head: PredictionHead, first: bool):
        super().__init__()
        width = head.classify.in_features
        self.classify = head.classify
        self.regress = head.regress if first else None
        self.edges = MLP(width, width, 4 * BINS)
        nn.init.zeros_(self.edges.last.weight)
        nn.init.zeros_(self.edges.last.bias)

    def forward(
        self, states: Tensor, before: Tensor | None = None, so_far: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of classes `[B, Q, C]` and of edges `[B, Q, 4, 33]` and, in the first layer, box deltas `[B, Q, 4]`.

        Args:
            states: `[B, Q, E]`.
            before: `[B, Q, E]`, the states after the layer before, through which no gradient runs.
            so_far: `[B, Q, 4, 33]`, the logits of the layer before, to which this one's are added.
        """
        logits = self.classify(states)
        with torch.autocast(states.device.type, enabled=False):  # in half precision boxes would move by pixels
            states = states.to(self.classify.weight.dtype)
            both = states if before is None else states + before.detach().to(states.dtype)
            edges = self.edges(both).unflatten(-1, (4, BINS))
            delta = None if self.regress is None else self.regress(states)
            return logits, edges if so_far is None else so_far + edges, delta


def distribution_heads(heads: Sequence[PredictionHead]) -> list[DistributionHead]:
    """Heads of distributions in place of ordinary ones, which they take over what they need of."""
    return [DistributionHead(head, first=i == 0) for i, head in enumerate(heads)]


class EdgeRefinement:
    """What goes on from one decoder layer to the next: its states, and the logits of the edges.

    Args:
        detach: stop the gradient of boxes from the starting box, which then has losses of its own.
        epsilon: see `heads.inverse_sigmoid`.
    """

    def __init__(self, detach: bool, epsilon: float = 1e-5):
        self.detach, self.epsilon = detach, epsilon
        self.start: Tensor | None = None
        self.states: Tensor | None = None
        self.logits: list[Tensor] = []

    def __call__(self, head: nn.Module, states: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits `[B, Q, C]` and boxes `[B, Q, 4]` of the next layer.

        Args:
            head: the layer's `DistributionHead`.
            states: `[B, Q, E]`.
            reference: `[B, Q, 2 or 4]`, which the first layer makes the starting box of (`heads.update_box`).
        """
        classes, edges, delta = head(states, self.states, self.logits[-1] if self.logits else None)
        if self.start is None:
            self.start = update_box(delta, reference, self.epsilon)
        self.states = states
        self.logits.append(edges)
        return classes, decode_edges(edges, self.start.detach() if self.detach else self.start)

    def distributions(self) -> Distributions:
        """Those of all layers."""
        assert self.start is not None
        return Distributions(torch.stack(self.logits), self.start)
