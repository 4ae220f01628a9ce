"""From backbone features to L maps of one width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
    """

    def __init__(self, in_channels: Sequence[int], d_model: int = 256, num_levels: int = 4, norm_groups: int = 32):
        super().__init__()
        projections = [nn.Conv2d(channels, d_model, kernel_size=1) for channels in in_channels]
        for i in range(num_levels - len(in_channels)):
            source = in_channels[-1] if i == 0 else d_model
            projections.append(nn.Conv2d(source, d_model, kernel_size=3, stride=2, padding=1))
        for convolution in projections:
            nn.init.xavier_uniform_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        self.levels = nn.ModuleList(nn.Sequential(c, GroupNorm(norm_groups, d_model)) for c in projections)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps `[B, C_i, H_i, W_i]` -> L maps `[B, E, H_l, W_l]`, shallow first."""
        maps = [project(feature) for project, feature in zip(self.levels, features)]
        source = features[-1]
        for project in self.levels[len(features) :]:
            maps.append(project(source))
            source = maps[-1]
        return maps
