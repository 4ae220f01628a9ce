"""The public function of multi-scale deformable attention: it checks its arguments, picks a backend and runs it."""

import functools
import os
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.amp import is_autocast_available

from ops import backends, library, reference
from ops.arguments import WHOLE, need_shapes, need_tensors, said

BACKEND_VARIABLE = "MS_DEFORM_ATTN_BACKEND"
# In PyTorch, for any device. A variation of the sampling rule is a function of its own and a line here.
IN_PYTORCH = {"reference": reference.ms_deform_attn}
BACKENDS = ("cuda", "cpu", *IN_PYTORCH)
MAX_LEVELS = 32  # kMaxLevels of csrc/problem.h

# Load at import, never inside a torch.compile trace.
_COMPILED = {name: backends.load(name) for name in ("cuda", "cpu")}
_warned: set[str] = set()
# Ask once: torch raises for device types without autocast, and some versions cannot compile the question.
_AUTOCAST = frozenset(filter(is_autocast_available, ("cpu", "cuda", "mps", "xpu")))


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention (arXiv 2010.04159, equation 3) without its linear projections.

    Every query takes, for each head, a weighted sum of bilinear samples of that head's value maps. Locations `(x, y)`
    are in [0, 1] between the map's outer edges: `pixel = location * size - 0.5`. Locations outside the map read zero,
    and so do locations that are not finite.

    Value, locations and weights get gradients, which can be differentiated once more (through the reference). On the
    CPU, gradients are the same in every run and with any number of threads; on CUDA, they are the same in every run
    after `torch.use_deterministic_algorithms(True)`.

    Args:
        value: `[B, S, M, D]`, the maps of all levels flattened row by row, S = sum of H*W over levels. fp32, fp64,
            fp16 or bf16; under autocast an fp32 value is cast to autocast's dtype.
        spatial_shapes: `[(H_1, W_1), ...]` of the L levels, at most 32, Python ints.
        sampling_locations: `[B, Q, M, P, 2]`, (x, y) in [0, 1]; the points of the first level come first,
            P = sum(num_points). fp64 for an fp64 value, fp32 otherwise; half precision is cast to fp32.
        attention_weights: `[B, Q, M, P]`, usually a softmax over P, with the same dtypes as the locations.
        num_points: `[K_1, ..., K_L]`, sampling points per head on each level, Python ints.
        backend: `cuda`, `cpu` or `reference`; None takes the one named in `MS_DEFORM_ATTN_BACKEND`, else the compiled
            one for the value's device, else the reference.

    Returns:
        `[B, Q, M*D]` in the dtype of `value`, after autocast. Half-precision values are accumulated in fp32.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others.
        RuntimeError: the requested backend is unknown, not built, or not for the value's device.
    """
    need_tensors(value=value, sampling_locations=sampling_locations, attention_weights=attention_weights)
    device_type = value.device.type
    value = value.to(autocast_type(value))
    _check(value, spatial_shapes, sampling_locations, attention_weights, num_points)
    compute = _compute_type(value)
    if sampling_locations.dtype is not compute:
        sampling_locations = sampling_locations.to(compute)
    if attention_weights.dtype is not compute:
        attention_weights = attention_weights.to(compute)
    run = _select(backend, device_type)
    return run(value, spatial_shapes, sampling_locations, attention_weights, num_points)


def autocast_type(tensor: Tensor) -> torch.dtype:
    """The dtype to compute with: autocast's for an fp32 tensor where autocast is on, else the tensor's own."""
    device_type = tensor.device.type
    if tensor.dtype is torch.float32 and device_type in _AUTOCAST and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return tensor.dtype


def backend_info() -> dict[str, str]:
    """A description of each backend by name; `"selected"` names the one for this machine's accelerator or CPU.

    Raises:
        RuntimeError: `MS_DEFORM_ATTN_BACKEND` names a backend that cannot run there.
    """
    info = {name: compiled.detail for name, compiled in _COMPILED.items()}
    info["reference"] = f"PyTorch {torch.__version__}, any device, differentiable twice"
    device = torch.accelerator.current_accelerator(check_available=True)
    info["selected"] = selected_backend(device.type if device else "cpu")
    return info


def selected_backend(device_type: str, backend: str | None = None) -> str:
    """The name of the backend that takes tensors of a device type (`"cpu"`, `"cuda"`, `"mps"`, ...).

    Args:
        device_type: `tensor.device.type`.
        backend: the backend, as in `ms_deform_attn`.

    Raises:
        RuntimeError: the requested backend is unknown, not built, or not for this device type.
    """
    asked = backend or os.environ.get(BACKEND_VARIABLE)
    if not asked:
        return device_type if device_type in _COMPILED and _unavailable(device_type) is None else "reference"
    if asked not in BACKENDS:
        raise RuntimeError(f"ms_deform_attn has no backend '{asked}'; there are: {', '.join(BACKENDS)}")
    if asked in IN_PYTORCH:
        return asked
    reason = _unavailable(asked)
    if reason is not None:
        raise RuntimeError(f"ms_deform_attn's backend '{asked}' is not available: {reason}")
    if asked != device_type:
        raise RuntimeError(
            f"ms_deform_attn's backend '{asked}' is asked for, but the tensors are on {device_type}; ask for "
            f"'reference', or move them"
        )
    return asked


def _unavailable(name: str) -> str | None:
    """Why a compiled backend cannot be called, with the remedy; None if it can."""
    compiled = _COMPILED[name]
    if not compiled.loaded:
        return compiled.detail
    if name == "cuda" and not torch.compiler.is_compiling() and torch.cuda.is_initialized():
        return _unfit_card(torch.cuda.current_device())
    return None


@functools.cache
def _unfit_card(index: int) -> str | None:
    """Why the CUDA library does not run on a card, or None. Asking starts CUDA, so ask only once a card is in use."""
    capability = torch.cuda.get_device_capability(index)
    targets = _COMPILED["cuda"].targets
    if backends.serves(targets, capability):
        return None
    return (
        f"the library is built for {', '.join(targets)}, and {torch.cuda.get_device_name(index)} is "
        f"sm_{capability[0]}{capability[1]}: {backends.REBUILD} on a machine that has one, or with --arch"
    )


def _select(backend: str | None, device_type: str) -> Callable[..., Tensor]:
    selected = selected_backend(device_type, backend)
    if selected not in IN_PYTORCH:
        return library.ms_deform_attn
    forced = backend or os.environ.get(BACKEND_VARIABLE)
    if device_type in _COMPILED and not forced and device_type not in _warned and not torch.compiler.is_compiling():
        _warned.add(device_type)
        warnings.warn(
            f"ms_deform_attn runs its slow reference on {device_type} tensors: {_unavailable(device_type)}",
            RuntimeWarning,
            stacklevel=3,
        )
    return IN_PYTORCH[selected]


def _compute_type(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype is torch.float64 else torch.float32


def _check(value, spatial_shapes, sampling_locations, attention_weights, num_points) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be [B, S, M, D], got {list(value.shape)}")
    batch, tokens, heads, _ = value.shape
    need_shapes(spatial_shapes)
    if not isinstance(num_points, Sequence) or not all(isinstance(points, WHOLE) for points in num_points):
        raise ValueError(f"num_points must be Python ints, one for each level, got {said(num_points)}")
    if len(spatial_shapes) != len(num_points):
        raise ValueError(
            f"num_points must have one entry for each of the {len(spatial_shapes)} levels of spatial_shapes, "
            f"got {list(num_points)}"
        )
    if len(num_points) > MAX_LEVELS:
        raise ValueError(f"spatial_shapes has {len(spatial_shapes)} levels, at most {MAX_LEVELS} are supported")
    if any(height < 0 or width < 0 for height, width in spatial_shapes):
        raise ValueError(f"spatial_shapes must not be negative, got {list(spatial_shapes)}")
    if any(points < 0 for points in num_points):
        raise ValueError(f"num_points must not be negative, got {list(num_points)}")
    expected = sum(height * width for height, width in spatial_shapes)
    if tokens != expected:
        raise ValueError(f"value has {tokens} tokens, but spatial_shapes {list(spatial_shapes)} hold {expected}")
    points = sum(num_points)
    shape = attention_weights.shape
    if len(shape) != 4 or shape[0] != batch or shape[2] != heads or shape[3] != points:
        raise ValueError(f"attention_weights must be [B={batch}, Q, M={heads}, P={points}], got {list(shape)}")
    if sampling_locations.shape != (*shape, 2):
        raise ValueError(
            f"sampling_locations must be {[*shape, 2]} to fit attention_weights, got {list(sampling_locations.shape)}"
        )
    if value.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ValueError(f"value must be float32, float64, float16 or bfloat16, got {value.dtype}")
    compute = _compute_type(value)
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, but value is on {value.device}")
        if tensor.dtype not in (compute, torch.float16, torch.bfloat16):
            raise ValueError(f"{name} must be {compute} for a value in {value.dtype}, got {tensor.dtype}")
