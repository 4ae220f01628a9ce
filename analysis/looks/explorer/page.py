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


def explorer_page(picture: Image.Image, name: str, sides: Sequence[dict[str, Any]], threshold: float, first: int) -> str:
    """The whole page.

    Args:
        picture: the picture, upright, RGB.
        name: of the picture's file.
        sides: what is known of each detector, see `analysis.looks.explorer.side`.
        threshold: smallest score of a query whose box is shown at first.
        first: the first detector's query that is shown at first.
    """
    data = {
        "picture": {"name": name, "width": picture.width, "height": picture.height, "url": _data_url(picture)},
        "palette": [to_hex(COLOURS(i / 31)) for i in range(32)],
        "threshold": threshold,
        "first": first,
        "sides": list(sides),
    }
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


def _joined(files: Sequence[str]) -> str:
    return "\n" + "\n".join((_ASSETS / file).read_text(encoding="utf-8") for file in files)


def _hash(text: str) -> str:
    """What allows this style or script, and no other, to act in the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: dict[str, Any]) -> str:
    """JSON that may stand in a script element: no text in it can close the element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _data_url(picture: Image.Image) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    written = {}
    for kind, options in {"jpeg": {"quality": 88, "subsampling": 0}, "png": {"optimize": True}}.items():
        file = io.BytesIO()
        shown.save(file, kind, **options)
        written[kind] = file.getvalue()
    kind = min(written, key=lambda kind: len(written[kind]))  # PNG for drawings, JPEG for photographs
    return f"data:image/{kind};base64," + base64.b64encode(written[kind]).decode()
