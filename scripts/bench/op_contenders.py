"""The implementations of the operator that the benchmark compares."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import ops
from scripts.bench.op_inputs import Inputs, compulsory_bytes
from util.errors import UserError

PACKAGE = "torch_ms_deform_attn"
CONTENDERS = ("cuda", "cpu", "reference", "package")


@dataclass(eq=False)
class Contender:
    """One implementation on one case.

    Attributes:
        name: one of `CONTENDERS`.
        inputs: the inputs, in the dtypes that it takes.
        call: maps value, locations and weights, in the layout of `leaves`, to the output `[B, Q, M*D]`.
        leaves: value, locations and weights, which all require gradients.
        bytes: the bytes that forward and backward must move, see `compulsory_bytes`.
        error: largest deviation of output and gradients, relative to the largest entry.
        failure: why it was not measured, or "".
        forward_s, both_s: seconds of a call, one entry for each turn; `both_s` is empty where the backward failed.
    """

    name: str
    inputs: Inputs
    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    leaves: tuple[Tensor, Tensor, Tensor]
    bytes: tuple[int, int]
    error: float | None = None
    failure: str = ""
    forward_s: list[float] = field(default_factory=list)
    both_s: list[float] = field(default_factory=list)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The output, computed without a graph."""
        return self.call(*self.leaves)

    def both(self) -> tuple[Tensor, ...]:
        """The output and the gradients of value, locations and weights."""
        out = self.call(*self.leaves)
        return out.detach(), *torch.autograd.grad(out, self.leaves, self.inputs.grad)

    def seconds(self, direction: str) -> list[float]:
        """Seconds of `forward`, `backward` or `both`, one entry for each turn."""
        if direction == "backward":
            return [both - forward for both, forward in zip(self.both_s, self.forward_s)]
        return self.forward_s if direction == "forward" else self.both_s


def label(name: str) -> str:
    """A contender's name in tables."""
    return PACKAGE if name == "package" else f"ours, {name}" if name != "reference" else "reference"


def make_contender(name: str, inputs: Inputs) -> Contender:
    """Set up an implementation. Arguments that it takes in another form are converted here and not timed."""
    locations, weights = inputs.locations, inputs.weights
    shapes, num_points = inputs.spatial_shapes, [inputs.points] * len(inputs.spatial_shapes)
    if name == "package":
        from torch_ms_deform_attn import ms_deform_attn

        dtype = inputs.value.dtype  # the package takes one dtype for all
        inputs = replace(inputs, locations=locations.to(dtype), weights=weights.to(dtype))
        levels = (len(shapes), inputs.points)
        locations, weights = inputs.locations.unflatten(3, levels), inputs.weights.unflatten(3, levels)
        sizes = torch.tensor(shapes, device=locations.device)
        areas = sizes.prod(1)
        starts = areas.cumsum(0) - areas

        def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ms_deform_attn(value, sizes, starts, locations, weights)
    else:

        def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ops.ms_deform_attn(value, shapes, locations, weights, num_points, backend=name)

    leaf_value, leaf_locations, leaf_weights = (t.detach().requires_grad_() for t in (inputs.value, locations, weights))
    leaves = (leaf_value, leaf_locations, leaf_weights)
    return Contender(name, inputs, call, leaves, compulsory_bytes(inputs))


def available(device: torch.device, asked: Sequence[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The names of the contenders that can run, and for the others why they cannot.

    Args:
        device: the device on which they would run.
        asked: names of the contenders to take; None takes all that can run.

    Raises:
        UserError: a requested contender cannot run.
    """
    found, missing = [], {}
    for name in CONTENDERS:
        try:
            if name == "package":
                import torch_ms_deform_attn  # noqa: F401
            else:
                ops.selected_backend(device.type, name)
        except ImportError as error:
            missing[name] = f"{PACKAGE} cannot be imported ({error}): pip install {PACKAGE}==0.1.1"
        except RuntimeError as error:
            missing[name] = str(error)
        else:
            found.append(name)
    for name in asked or []:
        if name in missing:
            raise UserError(f"--backends {name}: {missing[name]}")
    return [name for name in found if not asked or name in asked], missing


def versions(names: Sequence[str]) -> dict[str, str]:
    """A description of each contender.

    Raises:
        UserError: the environment variable names a backend that cannot run.
    """
    try:
        found = {name: text for name, text in ops.backend_info().items() if name in names}
    except RuntimeError as error:
        raise UserError(str(error)) from error
    if "package" in names:
        found["package"] = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    return found
