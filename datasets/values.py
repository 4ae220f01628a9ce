"""Values of JSON files read by their type: text where a number belongs, numbers where a yes or no belongs."""

import json
import math
import re
from typing import Any, TypeGuard

from datasets.annotations import Id

WHOLE = re.compile(r"\s*([+-]?[0-9]{1,100})(\.0*)?\s*")
LARGEST_SIDE = 2**31  # of an image, in pixels


def as_float(value: object) -> float | None:
    """A number, also written as text; None for anything else. It may be NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and "_" in value:  # Python reads 1_000
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if isinstance(value, int) and value > 0 else -math.inf


def as_flag(value: object) -> bool | None:
    """A yes or no: 0, 1, false, true, "0", "1"; null is no. None for anything else."""
    if value is None:
        return False
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return {"0": False, "1": True}.get(value.strip()) if isinstance(value, str) else None


def is_crowd(entry: dict[str, Any]) -> bool:
    """Whether an annotation is of a region that is left out: a crowd (`iscrowd`), or one to ignore (`ignore`)."""
    return bool(as_flag(entry.get("iscrowd")) or as_flag(entry.get("ignore")))


def as_area(value: object) -> float | None:
    """An area as a file may state it: a positive finite number, also written as text; None for anything else."""
    number = as_float(value)
    return number if number is not None and 0 < number < math.inf else None


def as_whole(value: object) -> int | None:
    """A whole number, also written 7.0 or as text; None for anything else."""
    if is_whole(value):
        return int(value)
    found = WHOLE.fullmatch(value) if isinstance(value, str) else None
    return int(found[1]) if found else None


def as_box(value: object) -> list[float] | None:
    """Four numbers, of which some may be written as text; None for anything else. They may make no possible box."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [as_float(v) for v in value]
    return None if None in numbers else [float(n) for n in numbers if n is not None]


def as_text(value: object) -> str:
    """Text that can be printed and written: halves of letters, which some tools leave behind, become a mark."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_box(value: object) -> bool:
    """Whether this is a list of four numbers, none of them text (which may still make an impossible box)."""
    return as_box(value) is not None and not any(isinstance(v, str) for v in value)  # type: ignore[attr-defined]


def is_whole(value: object) -> TypeGuard[int | float]:
    """Whether this is a whole number, also written 7.0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0


def is_id(value: object) -> TypeGuard[Id]:
    """Whether this can be an id: a whole number (also written 7.0), or text as some tools have it."""
    return isinstance(value, str) or is_whole(value)


def is_name(value: object) -> bool:
    """Whether this can be the name of a class: text, or a number."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) in pixels that an entry of an image states; None if it does not state both, as whole numbers."""
    width, height = entry.get("width"), entry.get("height")
    if not (is_whole(width) and is_whole(height) and 0 < width < LARGEST_SIDE and 0 < height < LARGEST_SIDE):
        return None
    return int(width), int(height)


def typed(value: object) -> str:
    """A value with its type, for errors: `'1' (text)`, `1 (number)`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "text", int: "number", float: "number"}
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"{shown} ({kinds[type(value)]})" if type(value) in kinds else shown
