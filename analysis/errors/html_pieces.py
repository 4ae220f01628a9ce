"""Pieces of HTML that the report of errors is made of: sections, bars, marks, cells and pictures."""

import base64
import io
from html import escape

from PIL import Image

from analysis.errors.error_pictures import COLOURS


def section(title: str, about: str, content: str) -> str:
    """A part of the page: its heading, what it shows, and that."""
    return f"<section>\n<h2>{title}</h2>\n<p>{about}</p>\n{content}\n</section>\n"


def figure(value: float | None) -> str:
    """Three digits; a dash for what there is none of."""
    return "-" if value is None or value == -1 else f"{value:.3f}"


def bar(value: float | None, largest: float, colour: str) -> str:
    """A bar as long as the value is of the largest one, with its figure behind it."""
    width = 0 if value is None or value < 0 else 100 * value / largest
    return f'<div><i style="width:{width:.1f}%;background:{colour}"></i></div><span>{figure(value)}</span>'


def chip(kind: str) -> str:
    """A small square in the colour of a kind of error; nothing for what has none."""
    return f'<i class="chip" style="background:{hex_colour(COLOURS[kind])}"></i>' if kind in COLOURS else ""


def hex_colour(colour: tuple[int, int, int]) -> str:
    """A colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def class_name(label: str, k: int, last: int) -> str:
    """The name of the class `k`; the last one is the background."""
    return "<em>background</em>" if k == last else escape(label)


def matrix_cell(count: int, share: float, diagonal: bool, corner: bool) -> str:
    """A cell of the confusion matrix, shaded by its share of the row; the corner stays empty."""
    if corner:
        return "<td></td>"
    red, green, blue = (0, 114, 178) if diagonal else (213, 94, 0)
    dark = "color:#fff;" if share > 0.6 else ""
    shade = f"background:rgba({red},{green},{blue},{share:.2f})"
    return f'<td style="{dark}{shade}" title="{share:.1%}">{count:,}</td>'


def data_url(picture: Image.Image) -> str:
    """A picture as JPEG within the page."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
