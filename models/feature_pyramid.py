"""Maps of several strides from the one map of a plain vision transformer: ViTDet's pyramid (arXiv 2203.16527)."""

import math
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

WIDTH = 256  # of the paper's maps; those of a narrower network are as wide as it is


class SimpleFeaturePyramid(nn.Module):
    """Each map is made from the last map of the network alone (section 3, "simple feature pyramid").

    To make it larger there are deconvolutions, each by two, with half of the channels; to make it smaller poolings. A
    1x1 and a 3x3 convolution follow, each with LayerNorm over the channels. Sizes are rounded up, as those of
    convolutional networks are.

    Args:
        channels: channels C of the network's map.
        stride: its stride in pixels; where it is no power of two, those of the maps are not either (7, 14 and 28).
        num_maps: maps to return: of about strides 32, 16, 8, 4, from the first one on.

    Attributes:
        channels: channels of each map.
        strides: stride of each map in pixels, shallow first.
    """

    def __init__(self, channels: int, stride: int, num_maps: int = 3):
        super().__init__()
        width = min(WIDTH, channels)
        halvings = [round(math.log2(32 / 2**i / stride)) for i in reversed(range(num_maps))]
        self.channels = [width] * num_maps
        self.strides = [stride * 2**n if n >= 0 else max(1, stride // 2**-n) for n in halvings]
        self.maps = nn.ModuleList(_scaled(channels, width, n) for n in halvings)

    def forward(self, x: Tensor) -> list[Tensor]:
        """`[B, C, H, W]` -> maps `[B, channels, H * stride / strides, W * stride / strides]`, shallow first."""
        return [of_map(x) for of_map in self.maps]


def plain_stride(strides: Sequence[int]) -> int | None:
    """The stride that several maps of a network share, or None if they are a pyramid already."""
    return strides[0] if len(strides) > 1 and len(set(strides)) == 1 else None


def _scaled(channels: int, width: int, halvings: int) -> nn.Sequential:
    """A map made half as large so many times; if negative, twice as large."""
    layers: list[nn.Module] = []
    for i in range(-halvings):
        if i:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
    layers += [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True) for _ in range(halvings)]
    layers += [nn.Conv2d(channels, width, kernel_size=1, bias=False), LayerNorm2d(width)]
    layers += [nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False), LayerNorm2d(width)]
    return nn.Sequential(*layers)
