"""What is wrong with a box and with an area: for those who report it and those who mend it."""

import math

from datasets.values import as_area, typed

ROUNDING = 1  # pixels beyond the image that are no fault: annotation tools round
IMPOSSIBLE = ("non-finite box", "negative box", "empty box")  # kinds of boxes of which nothing is left


def box_fault(box: list[float], size: tuple[int, int] | None) -> tuple[str, str] | None:
    """What is wrong with a box, as a kind and its particulars; None if nothing is.

    Args:
        box: [x, y, width, height] in pixels.
        size: (width, height) of the image in pixels, if it is known.
    """
    x, y, w, h = box
    shown = f"bbox [{', '.join(f'{v:.10g}' for v in box)}]"
    if not all(map(math.isfinite, box)):
        return "non-finite box", shown
    if w < 0 or h < 0:
        return "negative box", f"width {w:g}, height {h:g}"
    if w == 0 or h == 0:
        return "empty box", f"width {w:g}, height {h:g}"
    if size is not None:
        width, height = size
        over = max(-x, -y, x + w - width, y + h - height)
        beside = x >= width or y >= height or x + w <= 0 or y + h <= 0  # by no more than rounding, but wholly
        if over > ROUNDING or beside:
            return "box outside the image", f"{shown} is {over:g} pixels outside {width}x{height}"
    return None


def area_fault(area: object, box: list[float]) -> str | None:
    """What is wrong with an area that a file states; None if nothing is.

    Args:
        area: the value; none stated is no fault, for then it is that of the box.
        box: a possible box, [x, y, width, height] in pixels.
    """
    if area is None:
        return None
    number = as_area(area)
    if number is None:
        return f"area {typed(area)} is no positive number"
    if isinstance(area, str):
        return f"area {typed(area)} should be a number"
    if number > (box[2] + 2) * (box[3] + 2):  # the area of a segment, whose edge may count whole pixels
        return f"area {number:g} is larger than the box, {box[2]:g}x{box[3]:g}"
    return None
