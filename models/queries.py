"""Object queries: what the decoder starts from."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Queries:
    """The decoder's input.

    Attributes:
        content: `[B, Q, E]`, what each query is at first.
        position: `[B, Q, E]`, added to the content wherever attention is computed.
        reference: `[B, Q, 2]` points or `[B, Q, 4]` boxes cxcywh, in [0, 1] of the unpadded image.
    """

    content: Tensor
    position: Tensor
    reference: Tensor


class LearnedQueries(nn.Module):
    """Queries learned as parameters; the reference point is read from the position (arXiv 2010.04159, section 4.1).

    Args:
        num_queries: queries Q.
        d_model: embedding width E.
    """

    def __init__(self, num_queries: int = 300, d_model: int = 256):
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_queries, d_model))
        self.content = nn.Parameter(torch.randn(num_queries, d_model))
        self.reference_points = nn.Linear(d_model, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, batch: int) -> Queries:
        """The same queries for each of `batch` images."""
        with torch.autocast(self.position.device.type, enabled=False):  # in half precision they would move by pixels
            reference = self.reference_points(self.position).sigmoid()
        position, content, reference = (t[None].expand(batch, -1, -1) for t in (self.position, self.content, reference))
        return Queries(content, position, reference)
