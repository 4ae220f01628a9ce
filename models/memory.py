"""What the decoder reads: the tokens of all feature levels, and what is needed to know where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


@dataclass
class Memory:
    """The tokens of L feature levels, level by level and row by row, S in all.

    Attributes:
        tokens: `[B, S, E]`.
        padding_mask: `[B, S]`, True on padding.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        valid_ratios: `[B, L, 2]`, unpadded share (x, y) of each level.
    """

    tokens: Tensor
    padding_mask: Tensor
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor


def flatten_levels(maps: Sequence[Tensor], masks: Sequence[Tensor], dtype: torch.dtype) -> Memory:
    """The maps of all levels as one memory.

    Args:
        maps: `[B, E, H_l, W_l]` each.
        masks: `[B, H_l, W_l]` each, True on padding.
        dtype: type of the valid ratios.
    """
    return Memory(
        torch.cat([rearrange(m, "b e h w -> b (h w) e") for m in maps], 1),
        torch.cat([rearrange(m, "b h w -> b (h w)") for m in masks], 1),
        [(m.shape[-2], m.shape[-1]) for m in maps],
        torch.stack([valid_ratio(mask, dtype) for mask in masks], 1),
    )


def resize_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A padding mask by nearest neighbour: `[B, H, W]` -> `[B, h, w]`. The first row and column are never padding."""
    return F.interpolate(padding_mask[:, None].float(), size=size).squeeze(1).bool()


def valid_ratio(padding_mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpadded share of the width and height: `[B, H, W]` -> `[B, 2]`, (x, y)."""
    inside = (~padding_mask).to(dtype)
    return torch.stack([inside[:, 0, :].mean(1), inside[:, :, 0].mean(1)], -1)
