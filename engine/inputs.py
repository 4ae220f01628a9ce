"""What people hand to a predictor in Python: what is taken, and one sentence for everything else."""

import math
import numbers
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datasets.images import read_image
from models.postprocess import Detections
from util import cli
from util.config import TTAConfig
from util.errors import UserError
from util.files import at_home
from util.ranges import check_ranges

Picture = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor
TAKEN = "a path, a PIL image, or a uint8 array [H, W, 3] in RGB (of cv2's BGR, array[..., ::-1]), or a tensor [3, H, W]"
WEIGHTS = ("auto", "model", "ema")


def is_one(pictures: Any) -> bool:
    """Whether this is a picture, and no list of them.

    Raises:
        UserError: neither; or an empty list.
    """
    if isinstance(pictures, list | tuple):
        if not pictures:
            raise UserError(f"pictures is an empty {type(pictures).__name__}; give at least one picture: {TAKEN}")
        return False
    if (hasattr(pictures, "__next__") and not hasattr(pictures, "read")) or isinstance(
        pictures, set | frozenset | range
    ):
        raise UserError(f"pictures is a {type(pictures).__name__}; make it a list: list(pictures)")
    return True


def to_picture(given: Any, name: str = "picture") -> Image.Image:
    """A PIL image of whatever stands for one. A file is read upright and in RGB; arrays and tensors are RGB or grey.

    Args:
        given: path, PIL image, uint8 array `[H, W, 3]` in RGB, `[H, W, 1]` or `[H, W]` in grey, or tensor `[3, H, W]`,
            `[1, H, W]` or `[H, W]` of uint8 or of floats in [0, 1].
        name: what messages call it.

    Raises:
        UserError: anything else, or a picture that cannot be read.
    """
    if isinstance(given, str | os.PathLike):
        path = Path(at_home(given))
        if path.is_dir() or ("*" in path.name and not path.exists()):
            raise UserError(
                f"{name} is the folder or pattern '{given}'; give a list, such as "
                f"datasets.pictures.list_pictures({str(given)!r})"
            )
        return read_image(path)
    if isinstance(given, Image.Image):
        return _loaded(given, name)
    if isinstance(given, np.ndarray):
        return _of_array(given, name)
    if isinstance(given, torch.Tensor):
        return _of_tensor(given, name)
    if isinstance(given, bytes | bytearray | memoryview):
        raise UserError(f"{name} is bytes; give a PIL image, such as Image.open(io.BytesIO(data))")
    if hasattr(given, "read"):
        raise UserError(f"{name} is an open file; give a PIL image, such as Image.open(file)")
    raise UserError(f"{name} is {_said(given)}; it must be {TAKEN}")


def _loaded(picture: Image.Image, name: str) -> Image.Image:
    if 0 in picture.size:
        raise UserError(f"{name} is {picture.width} x {picture.height} pixels; it must have some")
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # a truncated file, or one that was closed
        raise UserError(f"{name} cannot be read, its file may be truncated, corrupt or closed: {error}") from None
    return picture


def _of_array(array: np.ndarray, name: str) -> Image.Image:
    shape, has = list(array.shape), f"{name} is an array {list(array.shape)} of {array.dtype}"
    if array.ndim == 4:
        raise UserError(f"{has}; several pictures are given as a list: list(array)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3)):
        mend = "give [H, W, 3] in RGB"
        if array.ndim == 3 and shape[2] == 4:
            mend = "drop the fourth channel, array[..., :3]"
        elif array.ndim == 3 and shape[0] in (1, 3):
            mend = "put the channels last, array.transpose(1, 2, 0)"
        raise UserError(f"{has}; {mend}")
    if array.dtype != np.uint8:
        mend = "bring it to 0..255 and give array.astype(np.uint8)"
        raise UserError(f"{has}; it must be uint8: {mend}")
    if array.size == 0:
        raise UserError(f"{has}; it must have pixels")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if shape[2:] == [1] else array))


def _of_tensor(tensor: torch.Tensor, name: str) -> Image.Image:
    """Floats become the nearest of 256 values, so that those that `torchvision` makes of bytes are the same again."""
    shape, has = list(tensor.shape), f"{name} is a tensor {list(tensor.shape)} of {tensor.dtype}"
    if tensor.dim() == 4:
        raise UserError(f"{has}; several pictures are given as a list: list(tensor)")
    if tensor.dim() not in (2, 3) or (tensor.dim() == 3 and shape[0] not in (1, 3)):
        mend = "give [3, H, W] in RGB"
        if tensor.dim() == 3 and shape[2] in (1, 3):
            mend = "put the channels first, tensor.permute(2, 0, 1)"
        raise UserError(f"{has}; {mend}")
    if tensor.is_floating_point():
        values = tensor.detach().float()
        if not bool(((values >= 0) & (values <= 1)).all()):  # also of NaN
            mend = "give it as it was before it was normalised, or divided by 255"
            raise UserError(f"{has} with values outside of [0, 1]; {mend}")
        tensor = (values * 255).round().to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise UserError(f"{has}; it must be uint8, or floats in [0, 1]")
    array = tensor.detach().cpu().numpy()
    return _of_array(array if array.ndim == 2 else array.transpose(1, 2, 0), name)


def check_size(size: Any) -> int | None:
    """The shorter side in pixels, or None.

    Raises:
        UserError: no whole number of at least 1.
    """
    return None if size is None else _whole(size, "size", "the shorter side in pixels, or None for the checkpoint's")


def check_top_k(top_k: Any) -> int:
    """The most detections of a picture.

    Raises:
        UserError: no whole number of at least 1.
    """
    return _whole(top_k, "top_k", "the most detections of a picture")


def check_threshold(threshold: Any) -> float:
    """The smallest score to keep.

    Raises:
        UserError: no number between 0 and 1.
    """
    is_number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if not is_number or math.isnan(threshold) or not 0 <= threshold <= 1:
        raise UserError(f"threshold is {_said(threshold)}; it must be a number between 0 and 1, the smallest score")
    return float(threshold)


def check_weights(weights: Any) -> None:
    """Refuse a choice of weights that there is not.

    Raises:
        UserError: names the choices.
    """
    if weights not in WEIGHTS:
        hint = "; best.pth is a checkpoint of its own" if weights == "best" else ""
        raise UserError(f"weights is {_said(weights)}; it must be one of {', '.join(map(repr, WEIGHTS))}{hint}")


def check_checkpoint(checkpoint: Any) -> str:
    """The path of a checkpoint.

    Raises:
        UserError: no path.
    """
    return _path(checkpoint, "checkpoint", "a path: a .pth file, or the folder of a run")


def check_classes(classes: Any) -> str | None:
    """The path of a file that names classes, or None.

    Raises:
        UserError: neither.
    """
    return None if classes is None else _path(classes, "classes", "the path of an annotation file, or None")


def check_tta(tta: Any) -> TTAConfig:
    """The views to take; those of None are one.

    Raises:
        UserError: neither None nor a `TTAConfig`, or one with values that its options do not take.
    """
    if tta is None:
        return TTAConfig()
    if not isinstance(tta, TTAConfig):
        raise UserError(
            f"tta is {_said(tta)}; it must be None or a util.config.TTAConfig, such as TTAConfig(flip=True)"
        )
    try:
        tta = cli.override(tta, {})  # parses every value, as on the command line
        check_ranges(tta)
    except UserError as error:
        raise UserError(f"tta.{error}") from None
    return tta


def check_detections(detections: Any) -> None:
    """Refuse what is not the detections of one picture.

    Raises:
        UserError: a list, or anything else.
    """
    if not isinstance(detections, Detections):
        raise UserError(f"detections is {_said(detections)}; it must be what predictor(picture) returns for a picture")


def _path(value: Any, name: str, meaning: str) -> str:
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} is {_said(value)}; it must be {meaning}")
    return at_home(value)


def _whole(value: Any, name: str, meaning: str) -> int:
    try:
        number = 0 if isinstance(value, bool | np.bool_) else operator.index(value)  # also numpy's
    except TypeError:
        number = 0
    if number < 1:
        raise UserError(f"{name} is {_said(value)}; it must be a whole number of at least 1, {meaning}")
    return number


def _said(value: Any) -> str:
    """A value as a message shows it: short ones as they are, the rest by their type."""
    text = repr(value) if isinstance(value, str | numbers.Number | tuple | list | type(None)) else ""
    return text if 0 < len(text) <= 60 else f"a {type(value).__name__}"
