"""The public function of multi-scale deformable attention: checks its arguments, picks a backend, runs it."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ops import reference

BACKEND_VARIABLE = "MS_DEFORM_ATTN_BACKEND"

# Every backend takes the arguments of `ms_deform_attn` (less `backend`) already checked.
_BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference.ms_deform_attn}


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
    backend: str | None = None,
) -> Tensor:
    """Multi-scale deformable attention (arXiv 2010.04159, equation 3) without its linear projections.

    Every query takes, for each head, a weighted sum of bilinear samples of that head's value maps. A location
    `(x, y)` in [0, 1] spans the map's outer edges: `pixel = location * size - 0.5`; what falls outside reads zero.

    Args:
        value: `[B, S, M, D]`, the maps of all levels flattened row by row, S = sum of H*W over levels.
        spatial_shapes: `[(H_1, W_1), ...]` of the L levels, Python ints.
        sampling_locations: `[B, Q, M, P, 2]`, (x, y) in [0, 1]; points of level 1 first, P = sum(num_points).
        attention_weights: `[B, Q, M, P]`, usually a softmax over P.
        num_points: `[K_1, ..., K_L]`, sampling points per head on each level, Python ints.
        backend: name of a backend; None takes the one named in `MS_DEFORM_ATTN_BACKEND`, else the best available.

    Returns:
        `[B, Q, M*D]` in the dtype of `value`. Half-precision values are accumulated in fp32.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others.
        RuntimeError: the backend asked for is unknown or not available.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights, num_points)
    return _select(backend)(value, spatial_shapes, sampling_locations, attention_weights, num_points)


def backend_info() -> dict[str, str]:
    """The available backends by name with a word on each, and under `"selected"` the one that will run.

    Raises:
        RuntimeError: `MS_DEFORM_ATTN_BACKEND` names one that is not available.
    """
    _select(None)
    return {"reference": f"PyTorch {torch.__version__}, any device, differentiable twice", "selected": _name(None)}


def _name(backend: str | None) -> str:
    return backend or os.environ.get(BACKEND_VARIABLE) or "reference"


def _select(backend: str | None) -> Callable[..., Tensor]:
    name = _name(backend)
    if name not in _BACKENDS:
        raise RuntimeError(f"ms_deform_attn has no backend '{name}'; available: {', '.join(_BACKENDS)}")
    return _BACKENDS[name]


def _check(value, spatial_shapes, sampling_locations, attention_weights, num_points) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must be [B, S, M, D], got {list(value.shape)}")
    batch, tokens, heads, _ = value.shape
    if len(spatial_shapes) != len(num_points):
        raise ValueError(
            f"num_points must have one entry for each of the {len(spatial_shapes)} levels of spatial_shapes, "
            f"got {list(num_points)}"
        )
    expected = sum(height * width for height, width in spatial_shapes)
    if tokens != expected:
        raise ValueError(f"value has {tokens} tokens, but spatial_shapes {list(spatial_shapes)} hold {expected}")
    points = sum(num_points)
    if attention_weights.dim() != 4 or tuple(attention_weights.shape[i] for i in (0, 2, 3)) != (batch, heads, points):
        raise ValueError(
            f"attention_weights must be [B={batch}, Q, M={heads}, P={points}], got {list(attention_weights.shape)}"
        )
    if sampling_locations.shape != (*attention_weights.shape, 2):
        raise ValueError(
            f"sampling_locations must be {[*attention_weights.shape, 2]} to fit attention_weights, "
            f"got {list(sampling_locations.shape)}"
        )
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, but value is on {value.device}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if not value.is_floating_point():
        raise ValueError(f"value must be floating point, got {value.dtype}")
