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
        inputs: in the dtypes that it takes.
        call: from value, locations and weights, laid out as in `leaves`, to the output `[B, Q, M*D]`.
        leaves: value, locations and weights, all requiring gradients.
        bytes: which forward and backward must move at least, see `compulsory_bytes`.
        error: largest deviation of output and gradients, as a part of the largest entry.
        failure: what kept it from being measured, or "".
        forward_s, both_s: seconds of a call, one entry a turn; `both_s` is empty where the backward failed.
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
        """The output, nothing kept for a backward."""
        return self.call(*self.leaves)

    def both(self) -> tuple[Tensor, ...]:
        """The output and the gradients of value, locations and weights."""
        out = self.call(*self.leaves)
        return out.detach(), *torch.autograd.grad(out, self.leaves, self.inputs.grad)

    def seconds(self, direction: str) -> list[float]:
        """Seconds of `forward`, `backward` or `both`, one entry a turn."""
        if direction == "backward":
            return [both - forward for both, forward in zip(self.both_s, self.forward_s)]
        return self.forward_s if direction == "forward" else self.both_s


def label(name: str) -> str:
    """A contender's name as tables show it."""
    return PACKAGE if name == "package" else f"ours, {name}" if name != "reference" else "reference"


def make_contender(name: str, inputs: Inputs) -> Contender:
    """Set up an implementation; arguments that it wants in another form are converted here, not on the clock."""
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

    leaves = tuple(t.detach().requires_grad_() for t in (inputs.value, locations, weights))
    return Contender(name, inputs, call, leaves, compulsory_bytes(inputs))


def available(device: torch.device, asked: Sequence[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """Names of the contenders that can run, and of the others why they cannot.

    Args:
        device: where they would run.
        asked: names that must be among them; None takes all there are.

    Raises:
        UserError: one that is asked for cannot run.
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
    """What each contender is, in words.

    Raises:
        UserError: the environment variable asks for a backend that cannot run.
    """
    try:
        found = {name: text for name, text in ops.backend_info().items() if name in names}
    except RuntimeError as error:
        raise UserError(str(error)) from error
    if "package" in names:
        found["package"] = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    return found
