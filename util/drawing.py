"""Boxes, names and scores on a picture."""

import colorsys
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from util.fonts import drawable, pillow_font

_LEGIBLE = 400  # pixels of the longer side from which names fit beside boxes


def draw_detections(
    picture: Image.Image,
    boxes,
    labels,
    scores=None,
    names: Mapping[int, str] | None = None,
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> Image.Image:
    """A copy of a picture with boxes drawn, the best on top; a small one is enlarged, for names to be read.

    Args:
        picture: RGB.
        boxes: `[N, 4]`, xyxy in pixels.
        labels: `[N]`.
        scores: `[N]`, best first; None draws names alone.
        names: class names by label; a label without a name, or one that no font here can draw, is shown as a number.
        colours: RGB of each box; None gives each class its own.
    """
    factor = max(1, round(_LEGIBLE / max(picture.size)))
    picture = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 400))
    size = max(14, round(max(picture.size) / 55))
    names = drawable(names or {})
    order = range(len(labels) - 1, -1, -1)
    for i in order:
        label = int(labels[i])
        colour = colours[i] if colours else class_colour(label)
        x0, y0, x1, y1 = (float(v) * factor for v in boxes[i])
        x0, x1 = sorted((min(max(x0, 0), picture.width - 1), min(max(x1, 0), picture.width - 1)))
        y0, y1 = sorted((min(max(y0, 0), picture.height - 1), min(max(y1, 0), picture.height - 1)))
        pen.rectangle([x0, y0, x1, y1], outline=colour, width=line)
        text = names.get(label) or str(label)
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        font = pillow_font(text, size)
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, high = right - left + 4, bottom - top + 4
        x = min(x0, max(0, picture.width - wide))
        y = y0 - high if y0 >= high else y0  # above the box, or inside it at the picture's top
        pen.rectangle([x, y, x + wide, y + high], fill=colour)
        pen.text((x + 2 - left, y + 2 - top), text, fill="white" if _is_dark(colour) else "black", font=font)
    return picture


def class_colour(label: int) -> tuple[int, int, int]:
    """A colour that stays with a class, far from its neighbours' (hues a golden angle apart)."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.381966 + 0.02) % 1.0, 0.85, 0.95 - 0.25 * (label % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def _is_dark(colour: tuple[int, int, int]) -> bool:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
