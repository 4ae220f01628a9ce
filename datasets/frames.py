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
    def said(self) -> bool:
        """Whether the stated size is that of the upright picture alone."""
        return self.stated == self.upright != self.raw

    def vote(self) -> Frame | None:
        """The frame that more of the boxes fit alone; None if none does, or as many fit the other."""
        if self.raw == self.upright:
            return None
        raw, upright = (_fits(self.boxes, size) for size in (self.raw, self.upright))
        only_raw, only_upright = int((raw & ~upright).sum()), int((upright & ~raw).sum())
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
    votes: list[Frame | None] = ["upright" if p.said else p.vote() for p in pictures]
    of_set = _lopsided([vote for p, vote in zip(pictures, votes) if vote and not p.said])
    found: list[tuple[Frame, bool]] = []
    for picture, vote in zip(pictures, votes):
        known: Frame | None = vote if picture.said else of_set or vote
        if known is not None:
            found.append((known, False))
        elif picture.stated == picture.raw != picture.upright:
            found.append(("raw", True))
        elif any(p.said for p in pictures):  # the tool knows EXIF
            found.append(("upright", False))
        else:  # one tool made the set: as the pictures whose size tells
            sized = any(p.stated == p.raw != p.upright for p in pictures)
            found.append(("raw" if sized else "upright", True))
    return found


def _lopsided(votes: Sequence[Frame]) -> Frame | None:
    upright = votes.count("upright")
    if votes and max(upright, len(votes) - upright) >= LOPSIDED * len(votes):
        return "upright" if upright > len(votes) - upright else "raw"
    return None


def _fits(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`[N]`: whether each box lies within (width, height)."""
    x, y, w, h = boxes.T
    with np.errstate(invalid="ignore", over="ignore"):
        inside = (x + w <= size[0] + TOLERANCE) & (y + h <= size[1] + TOLERANCE)
        return inside & (x >= -TOLERANCE) & (y >= -TOLERANCE) & (w > 0) & (h > 0)
