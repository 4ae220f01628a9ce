"""Class and box heads, and the rule by which a predicted delta moves a reference."""

import math
from copy import deepcopy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of `x` in [0, 1]; numerator and denominator of x / (1 - x) are at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def update_box(delta: Tensor, reference: Tensor, eps: float = 1e-5) -> Tensor:
    """Move a reference by a predicted delta, both in logit space (arXiv 2010.04159, appendix A.4).

    Args:
        delta: `[B, Q, 4]`, the box head's output.
        reference: `[B, Q, 2]` points or `[B, Q, 4]` boxes in [0, 1]; a point has no size to start from.
        eps: see `inverse_sigmoid`.

    Returns:
        Boxes `[B, Q, 4]`, cxcywh in [0, 1].
    """
    start = inverse_sigmoid(reference, eps)
    return (delta + F.pad(start, (0, 4 - reference.shape[-1]))).sigmoid()


class MLP(nn.Module):
    """Linear layers with ReLU between them; all but the last are `hidden` wide."""

    def __init__(self, width: int, hidden: int, out: int, num_layers: int = 3):
        super().__init__()
        sizes = [width] + [hidden] * (num_layers - 1) + [out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    @property
    def last(self) -> nn.Linear:
        """The layer that makes the output."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` -> `[..., out]`."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class PredictionHead(nn.Module):
    """One class head and one box head on decoder states or memory tokens.

    Args:
        d_model: embedding width E.
        num_classes: classes C, one sigmoid each.
        initial_size_bias: bias of width and height before any training; -2 starts with boxes of about an eighth.
    """

    def __init__(self, d_model: int, num_classes: int, initial_size_bias: float = 0.0):
        super().__init__()
        self.classify = nn.Linear(d_model, num_classes)
        self.regress = MLP(d_model, d_model, 4)
        nn.init.constant_(self.classify.bias, -math.log(99))  # every class starts at probability 0.01
        nn.init.zeros_(self.regress.last.weight)
        nn.init.zeros_(self.regress.last.bias)
        nn.init.constant_(self.regress.last.bias[2:], initial_size_bias)

    def copy(self, initial_size_bias: float) -> "PredictionHead":
        """A head of its own that starts with the same values, but for the bias of width and height."""
        other = deepcopy(self)
        nn.init.constant_(other.regress.last.bias[2:], initial_size_bias)
        return other

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, Q, E]` -> class logits `[B, Q, C]` and box deltas `[B, Q, 4]` in logit space."""
        logits = self.classify(states)
        with torch.autocast(states.device.type, enabled=False):  # in half precision boxes would move by pixels
            return logits, self.regress(states.to(self.classify.weight.dtype))


def decoder_heads(
    num_layers: int, d_model: int, num_classes: int, refinement: bool, from_boxes: bool
) -> list[PredictionHead]:
    """One head for every decoder layer; without refinement it is the same head every time.

    All start as copies of one. Proposals and anchors come with a size of their own, so only a head that starts from
    points begins at small boxes: the first.
    """
    first = PredictionHead(d_model, num_classes, 0.0 if from_boxes else -2.0)
    if not refinement:
        return [first]
    return [first, *(first.copy(initial_size_bias=0.0) for _ in range(num_layers - 1))]
