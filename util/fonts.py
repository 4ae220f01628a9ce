"""Fonts that have the characters of a text, for pictures and charts; numbers where there is none.

Pillow's own font has ASCII alone, and matplotlib's most alphabets but no Chinese, Japanese or Korean. What a font lacks
it draws as empty boxes. So, once they are needed, fonts that have it are looked for on this machine.
"""

import functools
import re
import unicodedata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = "DejaVu Sans"  # comes with matplotlib
_SPECIAL = re.compile(r"bold|black|heavy|light|thin|italic|oblique|mono|serif|condensed|narrow|display|symbol")
_EMPTY = re.compile(r"last.?resort|adobe.?blank")  # they have a box for every character there is
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # control characters, joiners, spaces


def pillow_font(text: str, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font for Pillow that has every character of a text; Pillow's own if it does, or if none does.

    Args:
        text: one or more lines.
        size: in pixels.
    """
    return _loaded(font_file(_seen(text)) or "", size)


def can_draw(text: str) -> bool:
    """Whether a font on this machine has every character of a text."""
    return font_file(_seen(text)) is not None


def drawable(names: Mapping[int, str]) -> dict[int, str]:
    """Class names by label as they can be drawn: a name whose characters no font has is its label."""
    return {label: name if can_draw(name) else str(label) for label, name in names.items()}


def legend_of(names: Mapping[int, str]) -> str:
    """A sentence on the classes that are drawn as numbers, with the name of each; empty if there are none."""
    numbered = [f"{label} {name}" for label, name in sorted(names.items()) if not can_draw(name)]
    if not numbered:
        return ""
    return (
        "no font here has the characters of some class names (Noto Sans CJK has those of Chinese, Japanese and "
        f"Korean), so their numbers are drawn: {', '.join(numbered)}"
    )


def fit_fonts(figure: "Figure") -> None:
    """Give the texts of a figure, before it is written, fonts that have their characters.

    Characters that no font has stay empty boxes, without a warning for each; where names are likely to have them,
    numbers are drawn instead.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii() and (further := _families(_seen(text.get_text()))):
            text.set_fontfamily([BASE, *further])


def save_figure(figure: "Figure", path: Path, dpi: float) -> None:
    """Write a figure with fonts that have its characters."""
    fit_fonts(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=dpi)


@functools.lru_cache(maxsize=32)
def _loaded(file: str, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@functools.cache
def font_file(characters: frozenset[str]) -> str | None:
    """The file of a font that has all of these characters; empty for Pillow's own, None if there is none."""
    if all(" " <= c <= "~" for c in characters):
        return ""
    return next((file for file in _files() if {ord(c) for c in characters} <= _characters_of(file)), None)


def _seen(text: str) -> frozenset[str]:
    """The characters of a text that leave a mark; those that choose a variant of the one before them do not."""
    seen = (c for c in text if unicodedata.category(c) not in _UNSEEN)
    return frozenset(c for c in seen if not unicodedata.name(c, "").startswith("VARIATION SELECTOR"))


@functools.cache
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """Families for matplotlib that have what its own font has not, as far as there are any."""
    from matplotlib import font_manager

    lacking = {c for c in characters if ord(c) not in _characters_of(_files()[0])}
    families: list[str] = []
    while lacking:
        file = font_file(frozenset(lacking)) or font_file(frozenset([min(lacking)]))
        if not file:
            lacking.remove(min(lacking))
            continue
        font_manager.fontManager.addfont(file)
        families.append(font_manager.FontProperties(fname=file).get_name())
        lacking = {c for c in lacking if ord(c) not in _characters_of(file)}
    return tuple(families)


@functools.cache
def _files() -> tuple[str, ...]:
    """matplotlib's own font, then those of this machine, plain ones first."""
    from matplotlib import font_manager, get_data_path

    own = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    found = [file for file in font_manager.findSystemFonts() if not _EMPTY.search(Path(file).name.lower())]
    return (str(own), *sorted(found, key=_plainness))


def _plainness(file: str) -> tuple[bool, str]:
    return _SPECIAL.search(Path(file).name.lower()) is not None, file


@functools.cache
def _characters_of(file: str) -> frozenset[int]:
    """The characters that a font has; none if Pillow or matplotlib cannot draw with it."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        ImageFont.truetype(file, 16)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):  # damaged, or of pixels for one size
        return frozenset()
