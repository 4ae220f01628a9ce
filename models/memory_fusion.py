"""The memory as a mixture of all encoder layers (Stable-DINO, arXiv 2304.04742, its section on memory fusion)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MemoryFusion(nn.Module):
    """What enters the encoder and what each of its N layers makes of it, side by side, projected and normalised.

    The backbone's tokens then reach the decoder by a short way, too. The initial values are those of the authors' code.

    Args:
        d_model: embedding width E.
        num_layers: encoder layers N.
        depth: linear layers of the projection: 1, or with ReLU between them 2, as in Relation-DETR's code.
    """

    def __init__(self, d_model: int, num_layers: int, depth: int = 1):
        super().__init__()
        self.linear = nn.Linear((num_layers + 1) * d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.second = nn.Linear(d_model, d_model) if depth > 1 else None

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """N + 1 times tokens `[B, S, E]`, the input first -> `[B, S, E]`."""
        fused = self.linear(torch.cat([*stages], -1))
        return self.norm(fused if self.second is None else self.second(fused.relu()))
