"""Reading pictures of every mode as 8-bit RGB."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.frames import Frame
from datasets.orientation import (
    UPRIGHT,
    orientation_of,
    stored_orientation,
    stored_size,
    turned,
    turned_back,
    turned_size,
)
from datasets.picture_file import check_mode, opened


def read_image(
    path: str | Path,
    annotated_size: tuple[int, int] | None = None,
    frame: Frame | None = None,
    lenient: bool = False,
) -> Image.Image:
    """Read a picture whole and bring it to RGB.

    Args:
        path: picture file.
        annotated_size: (width, height) that annotations give, if any. An EXIF rotation is applied unless only the
            unrotated picture has this size: then the annotations were made on it.
        frame: `upright` applies an EXIF rotation, `raw` does not, whatever the size; None goes by the size.
        lenient: of a damaged file, take what can be decoded; the rest is grey or black.

    Returns:
        An RGB image.

    Raises:
        BrokenImage: truncated, damaged, empty, or not a picture.
        UserError: missing, not to be opened, of too many pixels, or of a kind that has no RGB.
    """
    path = Path(path)
    with opened(path, lenient) as image:
        stored, orientation = stored_size(image), stored_orientation(image)
        image.load()
        turn = orientation_of(image)  # less than the other where Pillow has turned it by itself
    if frame is None:
        shown = turned_size(stored, orientation)
        frame = "raw" if annotated_size not in (None, shown) and annotated_size == stored else "upright"
    if frame == "upright":
        return to_rgb(turned(image, turn), path)
    return to_rgb(turned_back(image, orientation) if turn != orientation else turned(image, UPRIGHT), path)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says."""
    orientation = orientation_of(image)
    return image if orientation == UPRIGHT else turned(image, orientation)


def to_rgb(image: Image.Image, name: str | Path = "image") -> Image.Image:
    """8-bit RGB of any mode: 16-bit is scaled to 8 (not clipped), transparency is laid on white.

    Raises:
        UserError: a mode without a fixed range (32-bit floating point).
    """
    if image.mode.startswith("I"):  # 16-bit grey comes as I;16 (or I, from older writers)
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    check_mode(image.mode, name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
