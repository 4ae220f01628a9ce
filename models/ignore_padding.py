"""Parts that padding leaves no trace in: an image gives the same features however far it is padded.

Without them padding has two ways in. Group norms count it in their statistics. Convolutions near an image's edge read
what biases have made of it, where at the edge of an unpadded image they read zeros.
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.memory import resize_mask


class MaskedGroupNorm(nn.GroupNorm):
    """GroupNorm (arXiv 1803.08494) whose mean and variance are those of the pixels inside the image alone."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: `[B, E, H, W]`.
            padding_mask: `[B, H, W]`, True on padding; None if there is none.

        Returns:
            `[B, E, H, W]`, zero on padding, in float32 or wider.
        """
        grouped = x.unflatten(1, (self.num_groups, -1))  # [B, G, E / G, H, W]
        grouped = grouped.to(torch.promote_types(x.dtype, torch.float32))
        if padding_mask is None:
            padding_mask = x.new_zeros(x.shape[0], *x.shape[-2:], dtype=torch.bool)
        outside = padding_mask[:, None, None]
        count = (~outside).sum((2, 3, 4), keepdim=True).clamp(min=1) * grouped.shape[2]
        mean = grouped.masked_fill(outside, 0).sum((2, 3, 4), keepdim=True) / count
        centred = (grouped - mean).masked_fill(outside, 0)
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        normalised = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).masked_fill(
            padding_mask[:, None], 0
        )


class ZeroPadding:
    """Zeroes on padding what the convolutions and poolings of a network read.

    They then read there what they read beyond the edge of an unpadded image. That makes the maps of plain convolutional
    networks the same for any padding, if all sizes are multiples of the largest stride; what looks at the whole image
    (squeeze and excitation, attention) still sees the padding.

    Args:
        network: each of its modules with a kernel larger than a pixel is given a hook.

    Attributes:
        mask: `[B, H, W]`, True on padding, of the images that go through the network next; None zeroes nothing.
    """

    def __init__(self, network: nn.Module):
        self.mask: Tensor | None = None
        for module in network.modules():
            if _larger_than_a_pixel(getattr(module, "kernel_size", 1)):
                module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The hook: a module's inputs with zeros on padding."""
        if self.mask is None:
            return None
        x = inputs[0]
        return (x.masked_fill(resize_mask(self.mask, x.shape[-2:])[:, None], 0), *inputs[1:])


def _larger_than_a_pixel(kernel_size: object) -> bool:
    sides = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,)
    return any(isinstance(side, int) and side > 1 for side in sides)
