"""TensorFlow's "same" padding, written so that a graph for images of any size has short expressions for its sizes.

Under stride s, a map of side n goes to one of side ceil(n / s), and is padded for it by as few pixels as will do. timm
writes that number as max((ceil(n / s) - 1) s + k - n, 0), where k is the reach of the kernel. torch.export then keeps
the side of the padded map as n plus that term, and does not see that n cancels. An EfficientNet has five such strides,
each a nest around the one before, and every question about a size, of which there are thousands, walks through them:
seven minutes were not enough to trace one. Where k >= s the number is never negative. Without the maximum, and with
the ceiling as a quotient of whole numbers, n cancels, and (n - 1) // s + 1 remains, as in a ResNet.
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
    """While it lasts, timm's modules with "same" padding compute it in short expressions; what they give is the same.

    Args:
        network: changed in place, and back.
    """
    of_class = [(module, type(module)) for module in network.modules() if type(module) in PLAIN]
    by_switch: list[Any] = [m for m in network.modules() if getattr(m, "same_pad", False)]  # standardised convolutions
    hooks = [m.register_forward_pre_hook(_pad) for m in [*(module for module, _ in of_class), *by_switch]]
    try:
        for module, padding in of_class:
            module.__class__ = PLAIN[padding]
        for module in by_switch:
            module.same_pad = False
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, padding in of_class:
            module.__class__ = padding
        for module in by_switch:
            module.same_pad = True


def _pad(module: Any, inputs: tuple[Tensor]) -> Tensor:
    """The hook: a module's input with its padding."""
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
    total = (side - 1) // stride * stride + reach - side  # the last window's start, its reach, less what is there
    return total if reach >= stride else max(total, 0)
