"""An entry of an annotation file: a class, an image."""

from dataclasses import dataclass
from typing import TypeAlias

Id: TypeAlias = int | float | str  # a whole number (also written 7.0), or text, as some tools have it


@dataclass(frozen=True, slots=True)
class CategoryEntry:
    """A class as the file lists it."""

    id: Id
    name: str


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as the file lists it: a file name in the image folder; width and height in pixels, if they are said."""

    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None if the file does not say both."""
        return None if self.width is None or self.height is None else (self.width, self.height)
