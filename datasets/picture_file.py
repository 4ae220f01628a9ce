"""Opening a picture file: whatever is wrong with it is one sentence."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from datasets.pillow import SETTINGS
from util.errors import UserError

MOST_PIXELS = 10**9
BYTES_PER_PIXEL = 16  # of memory, while a picture is decoded, brought to RGB and resized


class MissingImage(UserError):
    """There is no file of the name."""


class BrokenImage(UserError):
    """The content of a file is damaged, or is no picture: another copy, or a part of it, may be good."""


@cache
def most_pixels() -> int:
    """The largest number of pixels that is read: a gigapixel, or less where this machine's memory is small."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        return MOST_PIXELS
    return min(MOST_PIXELS, memory // BYTES_PER_PIXEL)


@contextmanager
def opened(path: Path, lenient: bool = False) -> Iterator[Image.Image]:
    """A picture whose header was read; the block may load it.

    Args:
        path: picture file.
        lenient: of a damaged file, take what can be decoded; the rest is grey or black.

    Raises:
        MissingImage: no such file.
        BrokenImage: truncated, damaged, empty, or not a picture.
        UserError: not to be opened, or of too many pixels.
    """
    _check_file(path)
    with SETTINGS.lenient() if lenient else SETTINGS.shared():
        try:
            with _open(path) as image:
                _check_size(image, path)
                yield image
        except UserError:
            raise
        except UnidentifiedImageError:
            raise BrokenImage(f"'{path}' is not a picture in a format that can be read") from None
        except MemoryError:
            raise UserError(f"image '{path}' does not fit into memory; make a smaller copy") from None
        except Exception as error:  # the bytes are anybody's, and Pillow's decoders stumble in every way
            if isinstance(error, OSError) and error.errno is not None:
                raise UserError(f"image '{path}' cannot be opened: {error.strerror}") from None
            said = str(error) or type(error).__name__
            raise BrokenImage(f"image '{path}' cannot be read, it may be truncated or corrupt: {said}") from None


def check_mode(mode: str, name: str | Path) -> None:
    """Refuse pictures that cannot be brought to 8 bits."""
    if mode == "F":
        raise UserError(f"'{name}' holds 32-bit floats, whose range is unknown; save it with 8 or 16 bits")


def _check_file(path: Path) -> None:
    """Refuse what is no file: opening a folder is an error of many names, and a pipe would be waited for."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        leads = f": it is a link to '{path.readlink()}', which is not there" if path.is_symlink() else ""
        raise MissingImage(f"no image '{path}'{leads}") from None
    except OSError as error:
        raise UserError(f"image '{path}' cannot be opened: {error.strerror}") from None
    except ValueError as error:  # a zero byte in the name
        raise MissingImage(f"no image {str(path)!r}: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"image '{path}' is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"image '{path}' is no regular file")
    if not status.st_size:
        raise BrokenImage(f"image '{path}' is empty (0 bytes)")


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Exception as error:  # to know the resolution of a JPEG, Pillow parses all of its EXIF, and stumbles
        if isinstance(error, OSError) and not isinstance(error, UnidentifiedImageError):
            raise
        content, exif = without_exif(path.read_bytes())
        if not exif:
            raise
        image = Image.open(io.BytesIO(content))
        image.info["exif"] = exif
        return image


def without_exif(jpeg: bytes) -> tuple[bytes, bytes]:
    """A JPEG's content without its EXIF segments, and their content; of other bytes there is nothing to take out."""
    kept, exif, at = [jpeg[:2]], [], 2
    while jpeg[:2] == b"\xff\xd8" and jpeg[at : at + 1] == b"\xff" and at + 4 <= len(jpeg) and jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\0\0":
            exif.append(jpeg[at + 10 : end])
        else:
            kept.append(jpeg[at:end])
        at = end
    return b"".join([*kept, jpeg[at:]]), b"".join(exif)


def _check_size(image: Image.Image, path: Path) -> None:
    pixels = image.width * image.height
    if pixels > most_pixels():
        raise UserError(
            f"image '{path}' has {pixels / 1e6:,.0f} megapixels ({image.width}x{image.height}), and at most "
            f"{most_pixels() / 1e6:,.0f} are read here; cut it into tiles, or make a smaller copy"
        )
