"""Where a query is, made anew in each decoder layer (DAB-DETR, arXiv 2201.12329, section 4.2, and DINO's code)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import MLP
from models.position import sine_encoding


class QueryPosition(nn.Module):
    """Sines of a layer's reference, then a perceptron of two layers, the same one in all decoder layers.

    The encoding goes by x, y, w, h, with E/2 channels each. DINO's goes by y, x, w, h, and is otherwise the same: to
    take over its `ref_point_head`, swap the first E/2 input columns of the first layer with the next E/2. Points have
    no size; where boxes follow in later layers, the channels of w and h are zero for points.

    Args:
        d_model: embedding width E.
        coordinates: numbers of a reference that are encoded: 2, or 4 if any layer's reference is a box.
        on_padded: encode the reference in the padded map of the first level, as DINO's code does. Otherwise in the
            image itself, so that the position does not depend on padding.
        scaled: from the second layer on, multiply by a perceptron of what the query is (DAB-DETR, equation 6; here
            channel by channel of the position itself, as in Relation-DETR's code).
    """

    def __init__(self, d_model: int, coordinates: int = 4, on_padded: bool = True, scaled: bool = False):
        super().__init__()
        self.width, self.coordinates, self.on_padded = d_model // 2, coordinates, on_padded
        self.mlp = MLP(coordinates * self.width, d_model, d_model, num_layers=2)
        self.scale = MLP(d_model, d_model, d_model, num_layers=2) if scaled else None
        for values in self.parameters():
            if values.dim() > 1:
                nn.init.xavier_uniform_(values)

    def forward(self, reference: Tensor, ratios: Tensor, content: Tensor | None = None) -> Tensor:
        """The position of every query.

        Args:
            reference: `[B, Q, 2 or 4]` of this layer, in [0, 1] of the unpadded image.
            ratios: `[B, 2 or 4]`, the unpadded share of the first level: x, y, and for boxes x, y once more.
            content: `[B, Q, E]`, what each query is; None before the first layer.

        Returns:
            `[B, Q, E]`.
        """
        waves = sine_encoding(reference * ratios[:, None] if self.on_padded else reference, self.width)
        position = self.mlp(F.pad(waves, (0, self.coordinates * self.width - waves.shape[-1])))
        return position if self.scale is None or content is None else position * self.scale(content)
