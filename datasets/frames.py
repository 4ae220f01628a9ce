"""In which frame an EXIF-rotated picture was annotated: upright, as viewers show it, or raw, as it is stored.

Annotation tools differ. Some turn the picture; some do not; some draw boxes on the turned picture and write down the
size of the stored one. A box that fits one frame only tells which it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Frame: TypeAlias = Literal["upright", "raw"]
TOLERANCE = 1  # pixels that a box may lie outside: tools round
CARELESS = 0.02  # of the longer side; boxes are drawn over the edge by that much
LOPSIDED = 0.9  # share of the images with evidence that settles a whole set: one tool annotates most sets


@dataclass
class Rotated:
    """A picture that EXIF turns.

    Attributes:
        raw, upright: (width, height) as it is stored, and turned.
        stated: (width, height) that its annotations give, if any.
        boxes: `[N, 4]`, [x, y, width, height] in pixels, as annotated.
    """

    raw: tuple[int, int]
    upright: tuple[int, int]
    stated: tuple[int, int] | None
    boxes: np.ndarray

    @property
    def sized(self) -> Frame | None:
        """The frame whose size is stated; None if both have it, or none is stated."""
        if self.raw == self.upright:
            return None
        return {self.raw: "raw", self.upright: "upright"}.get(self.stated)  # type: ignore[arg-type, return-value]

    def vote(self) -> Frame | None:
        """The frame that more of the boxes fit alone; None if none does, or as many fit the other.

        Against a stated size that is right for viewers, a box must lie outside by more than carelessness.
        """
        if self.raw == self.upright:
            return None
        over_raw, over_upright = _over(self.boxes, self.raw), _over(self.boxes, self.upright)
        clear = TOLERANCE if self.sized != "upright" else max(TOLERANCE, CARELESS * max(self.upright))
        only_raw = int(((over_raw <= TOLERANCE) & (over_upright > clear)).sum())
        only_upright = int(((over_upright <= TOLERANCE) & (over_raw > TOLERANCE)).sum())
        return None if only_raw == only_upright else "raw" if only_raw > only_upright else "upright"


def frames_of(pictures: Sequence[Rotated], exif: str) -> list[tuple[Frame, bool]]:
    """The frame of each EXIF-rotated picture of a data set, and whether that is a guess.

    Args:
        pictures: all of them.
        exif: `upright` or `raw` decides; `auto` goes by stated sizes and boxes. Where those tell nothing, a picture
            is taken as its stated size says, else as such others, else upright.
    """
    if exif == "upright":
        return [("upright", False)] * len(pictures)
    if exif == "raw":
        return [("raw", False)] * len(pictures)
    votes = [picture.vote() for picture in pictures]
    sizes = [picture.sized for picture in pictures]
    of_set = _lopsided(votes)
    of_size = {size: _lopsided([v for v, s in zip(votes, sizes) if s == size]) for size in ("raw", "upright")}
    found: list[tuple[Frame, bool]] = []
    for vote, size in zip(votes, sizes):
        known = (of_size[size] or vote) if size else (vote or of_set)
        if known is not None:
            found.append((known, False))
        elif size is not None:
            found.append((size, size == "raw"))  # a tool that writes the turned size has seen the turned picture
        elif "upright" in sizes:
            found.append(("upright", False))
        else:  # one tool made the set: as the pictures whose size tells
            found.append(("raw" if "raw" in sizes else "upright", True))
    return found


def _lopsided(votes: Sequence[Frame | None]) -> Frame | None:
    upright, raw = votes.count("upright"), votes.count("raw")
    if not upright + raw or max(upright, raw) < LOPSIDED * (upright + raw):
        return None
    return "upright" if upright > raw else "raw"


def _over(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`[N]`: pixels by which each box lies outside (width, height); infinite for one that is no box."""
    x, y, w, h = boxes.T
    with np.errstate(invalid="ignore", over="ignore"):
        over = np.max([-x, -y, x + w - size[0], y + h - size[1], np.zeros_like(x)], axis=0)
        return np.where(np.isfinite(boxes).all(1) & (w > 0) & (h > 0), over, np.inf)
