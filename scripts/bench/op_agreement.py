"""Compares an implementation of the operator with the reference in fp64."""

import torch
from torch import Tensor

import ops
from scripts.bench.op_contenders import Contender, label
from scripts.bench.op_inputs import Inputs
from scripts.bench.timing import DisagreementError


def truth(inputs: Inputs) -> tuple[Tensor, ...]:
    """Output and three gradients from the reference in fp64, one image at a time, on the CPU."""
    parts = []
    for i in range(len(inputs.value)):
        cut = [t[i : i + 1].double() for t in (inputs.value, inputs.locations, inputs.weights, inputs.grad)]
        leaves = [t.requires_grad_() for t in cut[:3]]
        num_points = [inputs.points] * len(inputs.spatial_shapes)
        value, locations, weights = leaves
        out = ops.ms_deform_attn(value, inputs.spatial_shapes, locations, weights, num_points, backend="reference")
        parts.append([t.cpu() for t in (out.detach(), *torch.autograd.grad(out, leaves, cut[3]))])
    return tuple(torch.cat(p) for p in zip(*parts))


def check(contender: Contender, expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> float:
    """The largest deviation of output and gradients, each relative to its largest entry.

    Args:
        contender: the contender.
        expected: the result of `truth` on the contender's inputs.
        found: the contender's output, and its gradients if there are any.

    Raises:
        DisagreementError: the deviation is more than rounding.
    """
    inputs, largest = contender.inputs, 0.0
    side = max(max(shape) for shape in inputs.spatial_shapes)
    compute = torch.float64 if inputs.value.dtype is torch.float64 else torch.float32
    # The result is rounded to its dtype. Coordinates, in pixels, are exact to about one ulp of the map's side.
    allowed = 2 * torch.finfo(inputs.value.dtype).eps + 8 * side * torch.finfo(compute).eps
    names = ("output", "gradient of the value", "gradient of the locations", "gradient of the weights")
    for name, exact, tensor in zip(names, expected, found):
        difference = (tensor.detach().cpu().double().reshape(exact.shape) - exact).abs()
        if name == "gradient of the locations":
            # This gradient jumps where a sample crosses a pixel's centre, and rounding decides on which side it is.
            pixel = (inputs.locations.double() * inputs.sizes() - 0.5).cpu()
            difference[(pixel - pixel.round()).abs() < 1e-3] = 0
        error = float(difference.max() / exact.abs().max())
        if not error <= allowed:
            raise DisagreementError(
                f"{label(contender.name)} disagrees with the reference: its {name} is off by {error:.1e} of the "
                f"largest entry, rounding in {str(inputs.value.dtype).removeprefix('torch.')} allows {allowed:.1e}"
            )
        largest = max(largest, error)
    return largest
