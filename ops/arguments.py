"""Checks of arguments that the operators share. Each raises a ValueError that names the argument.

They look at types, shapes, dtypes and devices, which the host knows, and never at a GPU's numbers, for which it would
have to wait.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WHOLE = (int, torch.SymInt)


def need_tensors(**given: Any) -> None:
    """Refuse arguments that are no tensors.

    Raises:
        ValueError: one of them is none.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor, got {said(value)}")


def need_alike(first: str, **given: Tensor | None) -> None:
    """Refuse tensors that are not floating-point, or not on the device of one of them; None passes.

    Args:
        first: the name of the one that the others must be with.
        given: the tensors by name.

    Raises:
        ValueError: one of them is neither.
    """
    reference = given[first]
    assert reference is not None
    for name, tensor in given.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating-point, got {tensor.dtype}")
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, but {first} is on {reference.device}")


def need_like_weight(name: str, tensor: Tensor, weight: Any) -> None:
    """Refuse a tensor that a layer's weights cannot be multiplied with; under autocast, dtypes may differ.

    Raises:
        ValueError: it has another device or dtype.
    """
    if not isinstance(weight, Tensor):  # of a quantised layer
        return
    if tensor.device != weight.device:
        raise ValueError(f"{name} is on {tensor.device}, but the layer is on {weight.device}")
    if tensor.dtype is not weight.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise ValueError(f"{name} is {tensor.dtype}, but the layer is {weight.dtype}")


def need_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, WHOLE) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {said(value)}")


def need_number(name: str, value: Any, above: float = -math.inf) -> None:
    """Refuse what is no finite Python number larger than `above`.

    Raises:
        ValueError: it is not.
    """
    is_number = isinstance(value, int | float | torch.SymInt | torch.SymFloat) and not isinstance(value, bool)
    if not is_number or not above < value < math.inf:
        least = "" if above == -math.inf else f" above {above}"
        raise ValueError(f"{name} must be a finite number{least}, got {said(value)}")


def pair_of(name: str, value: Any, least: int) -> tuple[int, int]:
    """(vertical, horizontal) of a whole number for both, or of two.

    Raises:
        ValueError: neither, or less than `least`.
    """
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, WHOLE) and not isinstance(v, bool) and v >= least for v in pair):
        raise ValueError(
            f"{name} must be a number >= {least} or two of them (vertical, horizontal), whole, got {said(value)}"
        )
    return pair[0], pair[1]


def need_shapes(spatial_shapes: Any) -> None:
    """Refuse what is not a sequence of (H, W) in whole numbers that Python holds.

    Raises:
        ValueError: it is not.
    """
    if isinstance(spatial_shapes, Tensor):
        raise ValueError("spatial_shapes must be Python ints [(H, W), ...], got a tensor; give spatial_shapes.tolist()")
    fits = isinstance(spatial_shapes, Sequence) and all(
        isinstance(shape, Sequence) and len(shape) == 2 and all(isinstance(side, WHOLE) for side in shape)
        for shape in spatial_shapes
    )
    if not fits:
        raise ValueError(f"spatial_shapes must be Python ints [(H, W), ...], got {said(spatial_shapes)}")


def said(value: Any) -> str:
    """An argument as a message shows it: numbers and short sequences as they are, the rest by its type."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    text = repr(value) if isinstance(value, bool | int | float | str | tuple | list | type(None)) else ""
    return text if 0 < len(text) <= 80 else f"a {type(value).__name__}"
