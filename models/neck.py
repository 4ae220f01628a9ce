"""From backbone features to L maps of one width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.ignore_padding import MaskedGroupNorm
from models.memory import resize_mask


class GroupNorm(nn.GroupNorm):
    """GroupNorm that also takes a single value, of one pixel and one channel, which torch's module refuses.

    A single value is its own mean, and only the bias remains.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, E, H, W]` to a normalised one."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)


class Neck(nn.Module):
    """1x1 projections of the backbone's maps and strided 3x3 convolutions for further levels, each with GroupNorm.

    The first further level is made from the deepest backbone map itself, each later one from the level before it
    (arXiv 2010.04159, appendix A.2).

    Args:
        in_channels: channels of the backbone's maps, at most `num_levels` of them.
        d_model: width E of every level.
        num_levels: levels L to return.
        norm_groups: groups of the GroupNorm; divides `d_model`.
        ignore_padding: whether padding is left out of the norms' statistics and of what the strided convolutions read.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        d_model: int = 256,
        num_levels: int = 4,
        norm_groups: int = 32,
        ignore_padding: bool = False,
    ):
        super().__init__()
        self.ignore_padding = ignore_padding
        norm = MaskedGroupNorm if ignore_padding else GroupNorm
        projections = [nn.Conv2d(channels, d_model, kernel_size=1) for channels in in_channels]
        for i in range(num_levels - len(in_channels)):
            source = in_channels[-1] if i == 0 else d_model
            projections.append(nn.Conv2d(source, d_model, kernel_size=3, stride=2, padding=1))
        for convolution in projections:
            nn.init.xavier_uniform_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        self.levels = nn.ModuleList(nn.Sequential(c, norm(norm_groups, d_model)) for c in projections)

    def forward(self, features: Sequence[Tensor], padding_mask: Tensor | None = None) -> list[Tensor]:
        """Project.

        Args:
            features: backbone maps `[B, C_i, H_i, W_i]`, shallow first.
            padding_mask: `[B, H, W]` of the images, True on padding; only a neck that ignores padding looks at it.

        Returns:
            L maps `[B, E, H_l, W_l]`, shallow first.
        """
        mask = padding_mask if self.ignore_padding else None
        maps = [self._project(i, feature, mask) for i, feature in enumerate(features)]
        source = features[-1]
        for i in range(len(features), len(self.levels)):
            maps.append(self._project(i, source, mask))
            source = maps[-1]
        return maps

    def _project(self, level: int, source: Tensor, padding_mask: Tensor | None) -> Tensor:
        """One level; given a mask, without a trace of padding."""
        project = self.levels[level]
        if padding_mask is None:
            return project(source)
        assert isinstance(project, nn.Sequential)
        convolution, norm = project
        projected = convolution(source.masked_fill(_mask_of(source, padding_mask)[:, None], 0))
        return norm(projected, _mask_of(projected, padding_mask))


def _mask_of(maps: Tensor, padding_mask: Tensor) -> Tensor:
    """The padding mask `[B, H, W]` of images at the size of maps `[B, E, h, w]`: `[B, h, w]`."""
    height, width = maps.shape[-2:]
    return resize_mask(padding_mask, (height, width))
