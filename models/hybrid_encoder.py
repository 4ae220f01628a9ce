"""RT-DETR's encoder (arXiv 2304.08069, section 4.2): attention within the deepest level, convolutions across levels.

Its layers take and give the tokens of all levels, as those of the deformable encoder do, and stand in their place.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout
from models.ignore_padding import MaskedGroupNorm
from models.layers import FeedForward
from models.neck import GroupNorm

BLOCKS = 3  # 3x3 convolutions of a fusion block, as in the authors' configuration for ResNet-50


def hybrid_encoder(
    d_model: int,
    scales: Sequence[int],
    num_layers: int = 1,
    num_heads: int = 8,
    ffn_dim: int = 1024,
    dropout: float = 0.1,
    norm_groups: int = 32,
    ignore_padding: bool = False,
) -> list[nn.Module]:
    """The layers of the encoder: attention first, then the fusion, if there is more than one level.

    Args:
        d_model: embedding width E.
        scales: L - 1 numbers, by how much each level is smaller than the one before.
        num_layers: layers of attention within the deepest level; 1 in the paper, and 0 for none.
        num_heads: heads of the attention.
        ffn_dim: width of the feed-forward layers.
        dropout: probability in the layers of attention.
        norm_groups: groups of the group norms; divides `d_model`.
        ignore_padding: whether padding is left out of the norms' statistics.
    """
    layers: list[nn.Module] = [IntraScaleLayer(d_model, num_heads, ffn_dim, dropout) for _ in range(num_layers)]
    if scales:
        layers.append(CrossScaleFusion(d_model, scales, norm_groups, ignore_padding))
    return layers


class IntraScaleLayer(nn.Module):
    """Self-attention among the tokens of the deepest level, and feed-forward (AIFI); the other levels pass by.

    Dropout, residual and LayerNorm follow each, and the feed-forward has GELU, as in the authors' code.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, num_heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, ffn_dim, dropout, F.gelu)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, spatial_shapes, padding_mask) -> Tensor:
        """Tokens `[B, S, E]`, position `[B, S, E]`, padding_mask `[B, S]` -> tokens `[B, S, E]`."""
        height, width = spatial_shapes[-1]
        start = tokens.shape[1] - height * width
        deepest, mask = tokens[:, start:], padding_mask[:, start:]
        query = deepest + position[:, start:]
        attended = self.self_attn(query, query, deepest, key_padding_mask=mask, need_weights=False)[0]
        deepest = self.norm1(deepest + self.dropout(attended))
        deepest = self.norm2(deepest + self.dropout(self.ffn(deepest)))
        return torch.cat([tokens[:, :start].to(deepest.dtype), deepest], 1)


class CrossScaleFusion(nn.Module):
    """What levels know goes down to the shallowest and up again, by convolutions (CCFF).

    Down: a 1x1 convolution of the deeper map, upsampled to the size of the next one, joined with it and fused. Up: a
    strided 3x3 convolution, joined and fused.

    Norms are group norms, as in the neck, where the authors have batch norms: they are the same for any batch, any
    number of processes and micro-batches, in training and inference. Convolutions read zeros on padding, as they do
    beyond the edge of an image.

    Args:
        d_model: width E of every level.
        scales, norm_groups, ignore_padding: see `hybrid_encoder`.
    """

    def __init__(self, d_model: int, scales: Sequence[int], norm_groups: int = 32, ignore_padding: bool = False):
        super().__init__()
        of_norm = norm_groups, ignore_padding
        # Each list is by the shallower level of a pair.
        self.laterals = nn.ModuleList(ConvNorm(d_model, d_model, 1, 1, *of_norm) for _ in scales)
        self.top_down = nn.ModuleList(FusionBlock(d_model, *of_norm) for _ in scales)
        self.strided = nn.ModuleList(ConvNorm(d_model, d_model, 3, scale, *of_norm) for scale in scales)
        self.bottom_up = nn.ModuleList(FusionBlock(d_model, *of_norm) for _ in scales)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, spatial_shapes, padding_mask) -> Tensor:
        """Tokens `[B, S, E]`, padding_mask `[B, S]` -> tokens `[B, S, E]`."""
        lengths = [height * width for height, width in spatial_shapes]
        maps = [t.unflatten(1, s).movedim(-1, 1) for t, s in zip(tokens.split(lengths, 1), spatial_shapes)]
        masks = [m.unflatten(1, s) for m, s in zip(padding_mask.split(lengths, 1), spatial_shapes)]
        pairs = range(len(maps) - 1)
        for i in reversed(pairs):
            maps[i + 1] = self.laterals[i](maps[i + 1], masks[i + 1])
            raised = F.interpolate(maps[i + 1], size=spatial_shapes[i])  # nearest neighbour
            maps[i] = self.top_down[i](torch.cat([raised, maps[i]], 1), masks[i])
        for i in pairs:
            lowered = self.strided[i](maps[i], masks[i], masks[i + 1])
            maps[i + 1] = self.bottom_up[i](torch.cat([lowered, maps[i + 1]], 1), masks[i + 1])
        return torch.cat([m.flatten(2).mT for m in maps], 1)


class FusionBlock(nn.Module):
    """Two joined maps to one: two branches of a 1x1 convolution each, one with 3x3 convolutions after it, added.

    The authors' 3x3 convolutions are RepVGG blocks: a 1x1 convolution beside each, which is merged into it for
    inference. Batch norms can be merged; group norms, whose statistics are the image's own, cannot, and the second
    convolution would only cost time. So there are plain ones.
    """

    def __init__(self, d_model: int, norm_groups: int, ignore_padding: bool):
        super().__init__()
        of_norm = norm_groups, ignore_padding
        self.entry = ConvNorm(2 * d_model, d_model, 1, 1, *of_norm)
        self.blocks = nn.ModuleList(ConvNorm(d_model, d_model, 3, 1, *of_norm) for _ in range(BLOCKS))
        self.bypass = ConvNorm(2 * d_model, d_model, 1, 1, *of_norm)

    def forward(self, joined: Tensor, padding_mask: Tensor) -> Tensor:
        """`[B, 2 E, H, W]`, padding_mask `[B, H, W]` -> `[B, E, H, W]`."""
        x = self.entry(joined, padding_mask)
        for block in self.blocks:
            x = block(x, padding_mask)
        return x + self.bypass(joined, padding_mask)


class ConvNorm(nn.Module):
    """A convolution without bias, group norm and SiLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        norm_groups: int,
        ignore_padding: bool,
    ):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = (MaskedGroupNorm if ignore_padding else GroupNorm)(norm_groups, out_channels)
        self.ignore_padding = ignore_padding
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, x: Tensor, padding_mask: Tensor, out_mask: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: `[B, C, H, W]`.
            padding_mask: `[B, H, W]`, True on padding.
            out_mask: `[B, h, w]` of the level that a strided convolution leads to, which has the size of it: networks
                round sizes up or down, this convolution up. None: the map keeps its size.

        Returns:
            `[B, out_channels, h, w]`.
        """
        if self.conv.kernel_size != (1, 1):
            x = x.masked_fill(padding_mask[:, None], 0)
        x = self.conv(x)
        if out_mask is not None:
            (height, width), (h, w) = x.shape[-2:], out_mask.shape[-2:]
            if (height, width) != (h, w):
                x = F.pad(x, (0, w - width, 0, h - height))
            padding_mask = out_mask
        return F.silu(self.norm(x, padding_mask) if self.ignore_padding else self.norm(x))
