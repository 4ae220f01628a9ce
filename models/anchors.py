"""Learned boxes as the start of one-stage queries."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.heads import MLP, inverse_sigmoid
from models.memory import Memory
from models.position import sine_encoding
from models.queries import Queries, QuerySource
from util.objects import Objects


class AnchorQueries(QuerySource):
    """Queries that start from learned boxes, as DAB-DETR's (arXiv 2201.12329, section 4.2, without its other changes).

    What a query is starts at a learned vector. Where it is, is computed from its box. The position stays that of the
    first box in all decoder layers, as with proposals; DAB-DETR encodes each layer's box anew, which
    `models.query_position` does in place of this.

    Args:
        num_queries: queries Q.
        d_model: embedding width E.
        has_position: whether the position is made here.
    """

    def __init__(self, num_queries: int, d_model: int, has_position: bool = True):
        super().__init__(num_queries)
        self.d_model = d_model
        # Centres anywhere. Sizes as those that Deformable DETR's points are first given by their head, about an eighth;
        # normal numbers, as in DAB-DETR's code for deformable attention, would start with half the image.
        centres = inverse_sigmoid(torch.rand(num_queries, 2))
        self.anchors = nn.Parameter(torch.cat([centres, torch.full((num_queries, 2), -2.0)], 1))  # before the sigmoid
        self.content = nn.Parameter(torch.randn(num_queries, d_model))
        self.position_mlp = MLP(2 * d_model, d_model, d_model, num_layers=2) if has_position else None
        for values in self.position_mlp.parameters() if self.position_mlp is not None else ():
            if values.dim() > 1:
                nn.init.xavier_uniform_(values)

    def forward(self, memory: Memory, objects: Sequence[Objects] | None = None) -> Queries:
        """The same queries for each image."""
        reference = self.anchors.sigmoid()
        position = self.position_of(reference, self.content.dtype)
        shape = memory.tokens.shape[0], -1, -1
        return Queries(
            self.content.expand(shape), None if position is None else position.expand(shape), reference.expand(shape)
        )

    def position_of(self, reference: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Position `[..., E]` of boxes `[..., 4]` (section 4.2 there): sines of all four numbers, then a perceptron."""
        if self.position_mlp is None:
            return None
        return self.position_mlp(sine_encoding(reference, self.d_model // 2).to(dtype))
