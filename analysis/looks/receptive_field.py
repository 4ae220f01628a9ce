"""Effective receptive field: how strongly each pixel moves an output (arXiv 1811.11168, section 2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from models.detector import DeformableDETR
from models.predictions import Predictions


def class_output(query: int, label: int) -> Callable[[Predictions], Tensor]:
    """A query's class logit after the last layer, `[1]`."""
    return lambda predictions: predictions.logits[-1, 0, query, label][None]


def box_output(query: int) -> Callable[[Predictions], Tensor]:
    """The four coordinates (cxcywh, in [0, 1]) of a query's box after the last layer, `[4]`."""
    return lambda predictions: predictions.boxes[-1, 0, query]


def receptive_field(
    model: DeformableDETR, images: Tensor, padding_mask: Tensor, output: Callable[[Predictions], Tensor]
) -> Tensor:
    """The sum of |d output / d pixel| over channels, and over outputs if there are several.

    The gradient also runs through the references of iterative refinement, where training stops it. In a two-stage
    detector it does not run through the choice of proposals and their coordinates, where the model itself stops it.

    Args:
        model: the detector, in evaluation mode.
        images: `[B, 3, H, W]`, normalised.
        padding_mask: `[B, H, W]`, True on padding.
        output: maps predictions to the outputs `[N]` of interest.

    Returns:
        `[B, H, W]`, not negative, per unit of the normalised image. Padding gets 0: it is constant, although
        convolutions see it.
    """
    images = images.detach().clone().requires_grad_()
    field = torch.zeros_like(padding_mask, dtype=images.dtype)
    with torch.enable_grad(), _whole_gradient(model):
        values = output(model(images, padding_mask))
        for i, value in enumerate(values):
            (gradient,) = torch.autograd.grad(value, images, retain_graph=i + 1 < len(values))
            field += gradient.abs().sum(1)
    return field.masked_fill(padding_mask, 0.0)


@contextmanager
def _whole_gradient(model: DeformableDETR) -> Iterator[None]:
    """Let the gradient run through the boxes into earlier layers, as in a model without auxiliary losses."""
    before = model.auxiliary_losses
    model.auxiliary_losses = False
    try:
        yield
    finally:
        model.auxiliary_losses = before
