"""Where a token lies: sine encodings of positions, and one learned vector for each level."""

import math

import torch
from torch import Tensor, nn


class PositionEncoding(nn.Module):
    """2-D sine encoding plus a learned level embedding (arXiv 2010.04159, section 4.1).

    Args:
        d_model: embedding width E, a multiple of 4.
        num_levels: feature levels L.
        temperature, offset: see `sine_of_grid`.
    """

    def __init__(self, d_model: int = 256, num_levels: int = 4, temperature: float = 10000.0, offset: float = -0.5):
        super().__init__()
        self.d_model, self.temperature, self.offset = d_model, temperature, offset
        self.level_embed = nn.Parameter(torch.empty(num_levels, d_model))
        nn.init.normal_(self.level_embed)

    def forward(self, padding_masks: list[Tensor]) -> list[Tensor]:
        """Padding masks `[B, H_l, W_l]` of the levels -> encodings `[B, H_l, W_l, E]`."""
        return [
            sine_of_grid(mask, self.d_model, self.level_embed.dtype, self.temperature, self.offset) + embed
            for mask, embed in zip(padding_masks, self.level_embed)
        ]


def sine_of_grid(
    padding_mask: Tensor, d_model: int, dtype: torch.dtype, temperature: float = 10000.0, offset: float = -0.5
) -> Tensor:
    """Sine encoding of every pixel, counted over the unpadded part of each image.

    Args:
        padding_mask: `[B, H, W]`, True on padding.
        d_model: width E; the first half encodes y, the second x.
        dtype: type of the result.
        temperature: see `sine_encoding`; DINO's code (arXiv 2203.03605) has 20.
        offset: where the first pixel lies, which is counted as 1: by -0.5 at its centre. DINO's code has 0.

    Returns:
        `[B, H, W, E]`.
    """
    inside = (~padding_mask).to(dtype)
    y, x = inside.cumsum(1), inside.cumsum(2)
    y = (y + offset) / (y[:, -1:, :] + 1e-6)
    x = (x + offset) / (x[:, :, -1:] + 1e-6)
    return sine_encoding(torch.stack([y, x], -1), d_model // 2, temperature)


def sine_encoding(positions: Tensor, width: int, temperature: float = 10000.0, scale: float = 2 * math.pi) -> Tensor:
    """Interleaved sines and cosines of each coordinate.

    Args:
        positions: `[..., N]`, mostly in [0, 1].
        width: channels for each coordinate, even.
        temperature: the longest wavelength over the shortest.
        scale: 2 pi over the shortest wavelength.

    Returns:
        `[..., N * width]`.
    """
    pair = torch.arange(width, device=positions.device, dtype=positions.dtype) // 2
    angles = positions[..., None] * scale / temperature ** (2 * pair / width)  # [..., N, width]
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-3)
