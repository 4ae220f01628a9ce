"""Arrays as text that a page can read: fixed decimals in small integers, deflated, base64."""

import base64
import zlib
from typing import Any

import numpy as np

from util.errors import UserError

# The first that holds every value is taken; a page reads each by the name of its typed array.
_INTEGERS: dict[str, np.dtype[Any]] = {"Uint16": np.dtype("<u2"), "Int16": np.dtype("<i2"), "Int32": np.dtype("<i4")}
_TYPES: dict[str, np.dtype[Any]] = {**_INTEGERS, "Float32": np.dtype("<f4")}


def pack_decimals(values: np.ndarray, decimals: int) -> dict[str, Any]:
    """Values rounded to some decimals, as whole numbers of the last one: what is shown is then what is rounded.

    Args:
        values: of any shape.
        decimals: digits after the point.

    Returns:
        See `pack`; `decimals` is as given.

    Raises:
        UserError: a value is infinite, not a number, or beyond 32 bits.
    """
    whole = np.rint(values.astype(np.float64) * 10**decimals)
    if not np.isfinite(whole).all():
        raise UserError("the detector samples at places that are not numbers; its weights may have diverged")
    low, high = (whole.min(), whole.max()) if whole.size else (0, 0)
    for kind in _INTEGERS.values():
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return pack(whole.astype(kind), decimals)
    raise UserError("the detector samples millions of pixels away; its weights may have diverged")


def pack(array: np.ndarray, decimals: int = 0) -> dict[str, Any]:
    """An array of a kind that pages know, without loss.

    Bytes of equal significance stand together, because high bytes repeat and deflate well where whole numbers do not.

    Args:
        array: float32, or one of the integers of `_INTEGERS`.
        decimals: the array is in units of this decimal.

    Returns:
        `type`, `shape` and `decimals`, and `data`: base64 of zlib's format.

    Raises:
        ValueError: the array is of another kind.
    """
    kinds = [name for name, kind in _TYPES.items() if kind == array.dtype]
    if not kinds:
        raise ValueError(f"pages cannot read arrays of {array.dtype}")
    flat = np.ascontiguousarray(array).reshape(-1)
    planes = flat.view(np.uint8).reshape(-1, flat.itemsize).T
    data = base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()
    return {"type": kinds[0], "shape": list(array.shape), "decimals": decimals, "data": data}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array that `pack` or `pack_decimals` was given: float32 as it was, whole numbers in float64, rounded."""
    kind = _TYPES[packed["type"]]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    flat = np.ascontiguousarray(planes.reshape(kind.itemsize, -1).T).view(kind)
    array = flat.reshape(packed["shape"])
    return array if packed["type"] == "Float32" else array / 10.0 ** packed["decimals"]
