"""How boxes lie to each other, told to self-attention (Relation-DETR, arXiv 2407.11699)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from models.position import sine_encoding
from models.queries import Run


class BoxRelation(nn.Module):
    """A bias of self-attention's logits for each head, from the boxes of the two layers before.

    The four numbers of `relation_between` are encoded by sines, projected to one number for each head, and cut off at
    zero. All decoder layers share the projection. No gradient runs into boxes. The encoding of q queries that see each
    other takes q^2 * 64 numbers.

    Args:
        num_heads: heads M of self-attention.
        width: channels for each of the four numbers.
        temperature, scale: of the sines; the shortest wavelength is 2 pi / scale.
    """

    def __init__(self, num_heads: int, width: int = 16, temperature: float = 10000.0, scale: float = 100.0):
        super().__init__()
        self.width, self.temperature, self.scale = width, temperature, scale
        self.projection = nn.Linear(4 * width, num_heads)

    def forward(self, source: Tensor, target: Tensor, runs: Sequence[Run]) -> list[Run]:
        """Put a bias in place of the masks of runs, -inf where a mask hides.

        Args:
            source: boxes `[B, Q, 4]` of the queries that look, cxcywh in [0, 1], as they were one layer earlier.
            target: newest boxes `[B, Q, 4]` of the queries that are looked at.
            runs: groups of queries, for which boxes are compared within each group alone.

        Returns:
            The runs, with a bias `[B * n, M, q, q]` as the mask of n groups; what is not to be related stays as it is.
        """
        lengths = [run.length * run.groups for run in runs]
        parts = zip(runs, source.split(lengths, 1), target.split(lengths, 1))
        return [self._biased(run, of_source, of_target) if run.related else run for run, of_source, of_target in parts]

    def _biased(self, run: Run, source: Tensor, target: Tensor) -> Run:
        source, target = (rearrange(boxes, "b (n q) c -> (b n) q c", n=run.groups) for boxes in (source, target))
        bias = self.bias(source, target)
        if run.mask is not None:
            bias = bias.masked_fill(run.mask[:, None], float("-inf"))
        return Run(run.length, run.groups, bias)

    def bias(self, source: Tensor, target: Tensor) -> Tensor:
        """Boxes `[B, q, 4]` of rows and of columns -> `[B, M, q, q]`."""
        with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
            relation = relation_between(source, target)
            waves = sine_encoding(relation, self.width, self.temperature, self.scale)  # [B, q, q, 4 * width]
        return rearrange(self.projection(waves).relu(), "b i j m -> b m i j")


def relation_between(source: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """Where each target lies from each source, and how much larger the source is, both in logarithms.

    Args:
        source, target: boxes `[B, q, 4]`, cxcywh.
        eps: added to widths and heights, which may be zero.

    Returns:
        `[B, q, q, 4]`, of source i and target j: log(|x_i - x_j| / w_i + 1), the same of y and h, log(w_i / w_j),
        log(h_i / h_j).
    """
    source, target = source[:, :, None], target[:, None]
    size = source[..., 2:] + eps
    distance = torch.log((source[..., :2] - target[..., :2]).abs() / size + 1)
    return torch.cat([distance, torch.log(size / (target[..., 2:] + eps))], -1)
