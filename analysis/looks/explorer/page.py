"""The page: one HTML file with its style, script, picture and numbers, which needs no other file and no network."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.colors import to_hex
from PIL import Image

from analysis.looks.canvas import COLOURS

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("theme.css", "layout.css", "controls.css", "stage.css", "details.css")
# One after the other, in one scope: each uses names of those before it.
_SCRIPTS = (
    "packing.js",
    "points.js",
    "choice.js",
    "marks.js",
    "motion.js",
    "stage.js",
    "words.js",
    "legend.js",
    "controls.js",
    "details.js",
    "keys.js",
    "explorer.js",
)
_LARGEST = 1280  # pixels of the longer side of the picture in the page; the numbers are of the picture itself
_LOSSLESS = 256 * 256  # pixels of a picture that is enlarged so much that JPEG's errors would be seen


def explorer_page(picture: dict[str, Any], sides: Sequence[dict[str, Any]], threshold: float, first: int) -> str:
    """The whole page.

    Args:
        picture: see `describe_picture`.
        sides: what is known of each detector, see `analysis.looks.explorer.side`.
        threshold: smallest score of a query whose box is shown at first.
        first: the first detector's query that is shown at first.
    """
    data = {
        "picture": picture,
        "palette": [to_hex(COLOURS(i / 31)) for i in range(32)],
        "threshold": threshold,
        "first": first,
        "sides": list(sides),
    }
    name = picture["name"]
    style, script = (_joined(files) for files in (_STYLES, _SCRIPTS))
    page = Template((_ASSETS / "explorer.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(name),
        subject=escape(" and ".join([f"{name}, by {sides[0]['title']}", *(s["title"] for s in sides[1:])])),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_json(data),
    )


def describe_picture(picture: Image.Image, name: str) -> dict[str, Any]:
    """The picture as plain data: without loss if it is small, else as JPEG, no larger than a screen shows.

    Args:
        picture: the picture, upright, RGB.
        name: of its file.
    """
    shown, file = picture.convert("RGB"), io.BytesIO()
    shown.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    kind = "png" if shown.width * shown.height <= _LOSSLESS else "jpeg"
    shown.save(file, kind, quality=88, subsampling=0)  # PNG passes over both
    url = f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
    return {"name": readable(name), "width": picture.width, "height": picture.height, "url": url}


def readable(name: str) -> str:
    """A file's name as a page can hold it: bytes that are no UTF-8, as in names from other systems, are marked."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _joined(files: Sequence[str]) -> str:
    return "\n" + "\n".join((_ASSETS / file).read_text(encoding="utf-8") for file in files)


def _hash(text: str) -> str:
    """What allows this style or script, and no other, to act in the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: dict[str, Any]) -> str:
    """JSON that may stand in a script element: no text in it can close the element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
