"""What the header of a picture file says, and whether its end looks whole: all that is known without decoding it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from datasets.orientation import stored_orientation, stored_size, turned_size
from datasets.picture_file import check_mode, opened

TAIL = 256  # bytes from the end that are looked at
PADDING = b"\0\r\n "  # what writers and transfers leave after the end


@dataclass(frozen=True, slots=True)
class Header:
    """A picture that was opened.

    Attributes:
        size: (width, height) in pixels as it is stored.
        orientation: 1 to 8, as EXIF has it.
        whole: whether the file ends as its format does. If not, only decoding it tells whether anything is missing:
            bytes after the end are common.
    """

    size: tuple[int, int]
    orientation: int
    whole: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) in pixels of the upright picture."""
        return turned_size(self.size, self.orientation)


def read_header(path: Path, lenient: bool = False) -> Header:
    """Open a picture without decoding it; `lenient` as in `picture_file.opened`.

    Raises:
        MissingImage, BrokenImage, UserError: as `picture_file.opened`.
    """
    with opened(path, lenient) as image:
        check_mode(image.mode, path)
        return Header(stored_size(image), stored_orientation(image), _ends_whole(image))


def decode(path: Path, lenient: bool = False) -> None:
    """Decode a picture, to see that it can be.

    Raises:
        MissingImage, BrokenImage, UserError: as `picture_file.opened`.
    """
    with opened(path, lenient) as image:
        image.load()


def _ends_whole(image: Image.Image) -> bool:
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None:
        return False
    try:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - TAIL))
        tail = file.read(TAIL).rstrip(PADDING)
        if image.format in ("JPEG", "MPO", "JPEG2000"):
            return tail.endswith(b"\xff\xd9")
        if image.format == "PNG":
            return b"IEND\xaeB`\x82" in tail
        if image.format == "GIF":
            return tail.endswith(b";")
        if image.format == "WEBP":
            file.seek(4)
            return int.from_bytes(file.read(4), "little") + 8 <= length
        return _reach(image) <= length
    except Exception:  # a file that is odd in any way is decoded
        return False


def _reach(image: Image.Image) -> float:
    """Bytes that the file must have for its pixels; infinite if that is not known before they are decoded."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        offsets, lengths = (tags.get(strips) or tags[tiles] for strips, tiles in ((273, 324), (279, 325)))
        return max(offset + length for offset, length in zip(offsets, lengths))
    reach = 0.0
    for decoder, extent, offset, arguments in image.tile:  # type: ignore[attr-defined]
        if decoder != "raw" or not isinstance(arguments, tuple):
            return float("inf")
        least = (extent[2] - extent[0]) * len(image.getbands()) * (1 if image.mode != "1" else 1 / 8)
        reach = max(reach, offset + (arguments[1] or least) * (extent[3] - extent[1]))
    return reach or float("inf")
