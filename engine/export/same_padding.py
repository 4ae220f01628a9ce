"""TensorFlow's "same" padding, written so that a graph for images of any size has short expressions for its sizes.

A map of side n goes to one of side ceil(n / s) under stride s, and is padded for it by the smallest number of pixels
that lets every window fit. timm writes that number as max((ceil(n / s) - 1) s + k - n, 0), with the kernel's reach k.
torch.export keeps the side of the padded map as n plus that term: it cannot see that n cancels. Five strides, one
after another, nest five of them, and each question about a size, of which there are thousands, walks through the nest.
EfficientNet-Lite0 was not traced after seven minutes. Where k >= s the number is never negative. Without the maximum,
and with the ceiling as a quotient of whole numbers, n cancels, and a stride leaves (n - 1) // s + 1, as in a ResNet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

# What each is without its padding.
PLAIN: dict[type, type] = {Conv2dSame: nn.Conv2d, AvgPool2dSame: nn.AvgPool2d, MaxPool2dSame: nn.MaxPool2d}


@contextmanager
def short_sizes(network: nn.Module) -> Iterator[None]:
    """While it lasts, modules with "same" padding compute it in short expressions; what they give is the same.

    Args:
        network: changed in place, and back.
    """
    changed = [(module, type(module)) for module in network.modules() if type(module) in PLAIN]
    hooks = []
    try:
        for module, padded in changed:
            module.__class__ = PLAIN[padded]
            hooks.append(module.register_forward_pre_hook(_padded))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, padded in changed:
            module.__class__ = padded


def _padded(module: Any, inputs: tuple[Tensor]) -> Tensor:
    """The hook: the input with its padding."""
    (x,) = inputs
    dilation = getattr(module, "dilation", (1, 1))
    more: list[int] = []
    for axis in (1, 0):  # F.pad takes the last one first
        total = same_padding(x.shape[axis - 2], module.kernel_size[axis], module.stride[axis], dilation[axis])
        more += [total // 2, total - total // 2]
    return F.pad(x, more, value=float("-inf") if isinstance(module, nn.MaxPool2d) else 0.0)


def same_padding(side: int, kernel: int, stride: int, dilation: int = 1) -> int:
    """Pixels of padding, on both ends together, that make a side into ceil(side / stride)."""
    reach = (kernel - 1) * dilation + 1
    if reach == 1:  # a window of one pixel always fits
        return 0
    total = (side - 1) // stride * stride + reach - side  # from the first window's start to the end of the last
    return total if reach >= stride else max(total, 0)
