"""Reading pictures of every mode as 8-bit RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from util.errors import UserError


def read_image(path: str | Path, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """Read a picture whole and bring it to RGB.

    Args:
        path: picture file.
        annotated_size: (width, height) that annotations give, if any. An EXIF rotation is applied unless only the
            unrotated picture has this size: then the annotations were made on it.

    Returns:
        An RGB image.

    Raises:
        UserError: missing, truncated, or not a picture.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise UserError(f"no image '{path}'") from None
    except UnidentifiedImageError:
        raise UserError(f"'{path}' is not a picture in a format that can be read") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"image '{path}' cannot be read, it may be truncated or corrupt: {error}") from None
    rotated = upright(image)
    if annotated_size is not None and rotated.size != annotated_size and image.size == annotated_size:
        rotated = image
    return to_rgb(rotated, path)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError):  # unreadable EXIF: the pixels are whole, and viewers show them so
        return image


def to_rgb(image: Image.Image, name: str | Path = "image") -> Image.Image:
    """8-bit RGB of any mode: 16-bit is scaled to 8 (not clipped), transparency is laid on white.

    Raises:
        UserError: a mode without a fixed range (32-bit floating point).
    """
    if image.mode.startswith("I"):  # 16-bit grey comes as I;16 (or I, from older writers)
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"'{name}' holds 32-bit floats, whose range is unknown; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
