"""Layers that pool regions of interest (RoIs) at offsets which they predict from the features.

The layer that predicts the offsets is named `sampling_offsets`, as in `MSDeformAttn`, and starts at zero.
"""

import math
from functools import partial

from torch import Tensor, nn

from ops.arguments import need_like_weight, need_tensors
from ops.deform_conv import modulation_logit
from ops.roi_pool import bins_of, deform_roi_pool, ps_roi_pool


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling (arXiv 1703.06211, section 2.2, figure 3).

    The RoI is pooled without offsets; from the result a fully connected layer predicts an offset for each bin; with
    these the RoI is pooled again. Before training this is RoI align.

    Args:
        channels: number of channels C of the features.
        output_size: bins (h, w), or one number for both.
        spatial_scale: pixels of the map for one pixel of the image, 1/stride.
        gamma: factor of the offsets.
        sampling_ratio: number of samples in a bin along each axis.

    Raises:
        ValueError: `output_size` is neither a positive number nor two of them.
    """

    def __init__(
        self,
        channels: int,
        output_size: int | tuple[int, int] = 7,
        spatial_scale: float = 1 / 32,
        gamma: float = 0.1,
        sampling_ratio: int = 2,
    ):
        super().__init__()
        self.channels, self.bins = channels, bins_of(output_size)
        self.pool = partial(
            deform_roi_pool,
            output_size=self.bins,
            spatial_scale=spatial_scale,
            gamma=gamma,
            sampling_ratio=sampling_ratio,
        )
        num_bins = math.prod(self.bins)
        self.sampling_offsets = nn.Linear(channels * num_bins, num_bins * 2)
        _zero(self.sampling_offsets)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Pool every RoI.

        Args:
            features: `[B, C, H, W]`.
            rois: `[R, 5]`, (image index, x0, y0, x1, y1), in pixels of the image.

        Returns:
            `[R, C, h, w]`.

        Raises:
            ValueError: see `deform_roi_pool`.
        """
        _check(features, self.channels, self.sampling_offsets)
        offsets = self.sampling_offsets(self.pool(features, rois).flatten(1))
        return self.pool(features, rois, offsets=offsets.unflatten(1, (*self.bins, 2)))


class ModulatedDeformRoIPool(nn.Module):
    """Modulated deformable RoI pooling (Deformable ConvNets v2, arXiv 1811.11168, section 3.2).

    As in the paper, a branch pools without offsets, and predicts an offset and (through a sigmoid) a modulation for
    each bin. It has two fully connected layers, whose weights start normally distributed with deviation 0.01, and a
    last one that starts at zero. Here the last layer is split into `sampling_offsets` and `modulation`; the function is
    the same. The paper trains the branch with the ordinary learning rate; this project's optimizer takes a tenth of it
    for `sampling_offsets`.

    Args:
        channels: number of channels C of the features.
        output_size: bins (h, w), or one number for both.
        spatial_scale: pixels of the map for one pixel of the image, 1/stride.
        hidden: width of the two hidden layers.
        gamma: factor of the offsets.
        sampling_ratio: number of samples in a bin along each axis.
        initial_modulation: every bin's modulation before training, between 0 and 1. With the paper's 0.5 the layer
            starts as half of RoI align.

    Raises:
        ValueError: `output_size` is neither a positive number nor two of them, or `initial_modulation` is not between
            0 and 1.
    """

    def __init__(
        self,
        channels: int,
        output_size: int | tuple[int, int] = 7,
        spatial_scale: float = 1 / 32,
        hidden: int = 1024,
        gamma: float = 0.1,
        sampling_ratio: int = 2,
        initial_modulation: float = 0.5,
    ):
        super().__init__()
        self.channels, self.bins = channels, bins_of(output_size)
        self.pool = partial(
            deform_roi_pool,
            output_size=self.bins,
            spatial_scale=spatial_scale,
            gamma=gamma,
            sampling_ratio=sampling_ratio,
        )
        num_bins = math.prod(self.bins)
        first, second = nn.Linear(channels * num_bins, hidden), nn.Linear(hidden, hidden)
        self.hidden = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.sampling_offsets = nn.Linear(hidden, num_bins * 2)
        self.modulation = nn.Linear(hidden, num_bins)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        _zero(self.sampling_offsets)
        _zero(self.modulation)
        nn.init.constant_(self.modulation.bias, modulation_logit(initial_modulation))

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Pool every RoI.

        Args:
            features: `[B, C, H, W]`.
            rois: `[R, 5]`, (image index, x0, y0, x1, y1), in pixels of the image.

        Returns:
            `[R, C, h, w]`.

        Raises:
            ValueError: see `deform_roi_pool`.
        """
        _check(features, self.channels, self.sampling_offsets)
        hidden = self.hidden(self.pool(features, rois).flatten(1))
        offsets = self.sampling_offsets(hidden).unflatten(1, (*self.bins, 2))
        modulation = self.modulation(hidden).sigmoid().unflatten(1, self.bins)
        return self.pool(features, rois, offsets=offsets, modulation=modulation)


class DeformPSRoIPool(nn.Module):
    """Deformable position-sensitive RoI pooling (arXiv 1703.06211, section 2.2, figure 4).

    Two 1x1 convolutions make score maps and offset fields, one map for each bin of each channel and two fields for
    each bin. Position-sensitive pooling of the fields gives the offsets of a RoI, which all channels share; with them
    its scores are pooled. Before training this is position-sensitive RoI align of the score maps.

    Args:
        in_channels: number of channels C_in of the features.
        channels: number of channels C of the pooled scores.
        output_size: bins (h, w), or one number for both.
        spatial_scale: pixels of the map for one pixel of the image, 1/stride.
        gamma: factor of the offsets.
        sampling_ratio: number of samples in a bin along each axis.

    Raises:
        ValueError: `output_size` is neither a positive number nor two of them.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        output_size: int | tuple[int, int] = 7,
        spatial_scale: float = 1 / 16,
        gamma: float = 0.1,
        sampling_ratio: int = 2,
    ):
        super().__init__()
        bins = bins_of(output_size)
        self.pool = partial(
            ps_roi_pool, output_size=bins, spatial_scale=spatial_scale, gamma=gamma, sampling_ratio=sampling_ratio
        )
        num_bins = math.prod(bins)
        self.score_maps = nn.Conv2d(in_channels, channels * num_bins, 1)
        self.sampling_offsets = nn.Conv2d(in_channels, 2 * num_bins, 1)
        _zero(self.sampling_offsets)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Pool every RoI's scores.

        Args:
            features: `[B, C_in, H, W]`.
            rois: `[R, 5]`, (image index, x0, y0, x1, y1), in pixels of the image.

        Returns:
            `[R, C, h, w]`.

        Raises:
            ValueError: see `ps_roi_pool`.
        """
        _check(features, self.score_maps.in_channels, self.score_maps)
        offsets = self.pool(self.sampling_offsets(features), rois)  # [R, 2, h, w]
        return self.pool(self.score_maps(features), rois, offsets=offsets.permute(0, 2, 3, 1)[:, None])


def _check(features: Tensor, channels: int, layer: nn.Linear | nn.Conv2d) -> None:
    need_tensors(features=features)
    if features.dim() != 4 or features.shape[1] != channels:
        raise ValueError(f"features must be [B, C={channels}, H, W], got {list(features.shape)}")
    need_like_weight("features", features, layer.weight)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
