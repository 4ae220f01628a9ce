"""How a picture must be turned to be upright: EXIF tag 0x112, read from the bytes and never written.

Pillow's parser of EXIF stumbles over tags that have nothing to do with the orientation, and its
`ImageOps.exif_transpose` writes all of them anew. Here nothing but the one tag is looked at.
"""

import io
import re
import struct
from functools import cache

from PIL import Image

TAG = 0x0112
UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # these exchange width and height
WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # TIFF's types of whole numbers
NOTES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # keys of `Image.info` that may tell a turn


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 to 8; 1 where there is none, or none that can be read."""
    if _turned_when_loaded(image):
        return UPRIGHT
    try:
        tag = _from_exif(image)
        if tag is None:
            tag = _from_xmp(image)
    except Exception:  # the bytes are anybody's; a picture whose EXIF cannot be read is shown as it is stored
        return UPRIGHT
    return tag if tag in TURNS else UPRIGHT


def stored_orientation(image: Image.Image) -> int:
    """As `orientation_of`, but also of a TIFF that Pillow turns by itself; to be asked before the picture is loaded."""
    if not _turned_when_loaded(image):
        return orientation_of(image)
    try:
        tag = image.tag_v2.get(TAG)  # type: ignore[attr-defined]
        tag = _from_xmp(image) if tag is None else tag
    except Exception:
        return UPRIGHT
    return tag if isinstance(tag, int) and tag in TURNS else UPRIGHT


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of a picture as it is stored; to be asked before it is loaded."""
    if _turned_when_loaded(image):
        return image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
    return image.size


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture turned by an orientation, without the notes that say so, for it must not be turned again.

    Where nothing is to be turned it is the picture itself, without them.
    """
    result = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    for key in NOTES:
        result.info.pop(key, None)
    return result


def turned_back(image: Image.Image, orientation: int) -> Image.Image:
    """The undo of `turned`."""
    return turned(image, {6: 8, 8: 6}.get(orientation, orientation))


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of a picture of `size` after it was turned."""
    return (size[1], size[0]) if orientation in SIDEWAYS else size


def _from_exif(image: Image.Image) -> int | None:
    exif = image.info.get("exif")
    if exif is None and (text := image.info.get("Raw profile type exif")):
        exif = bytes.fromhex("".join(text.split("\n")[3:]))
    if exif is None and hasattr(image, "tag_v2"):
        value = image.tag_v2.get(TAG)
        return value if isinstance(value, int) else None
    return tag_of(re.sub(rb"^(Exif\x00\x00){1,2}", b"", exif)) if exif else None


def tag_of(tiff: bytes) -> int | None:
    """The orientation in the first directory of a TIFF's bytes, which EXIF is; None if there is none.

    A number of another type than a single whole one counts as 0, which is no orientation.
    """
    order = {b"II": "<", b"MM": ">"}[tiff[:2]]
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", tiff, entry)
        if tag == TAG:
            return struct.unpack_from(order + WHOLE[kind], tiff, entry + 8)[0] if kind in WHOLE and number == 1 else 0
    return None


def _from_xmp(image: Image.Image) -> int | None:
    text = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    found = re.search(r'tiff:Orientation(="|>)([0-9])', text) if text else None
    return int(found[2]) if found else None


def _turned_when_loaded(image: Image.Image) -> bool:
    return image.format == "TIFF" and _pillow_turns_tiff()


@cache
def _pillow_turns_tiff() -> bool:
    """Newer versions of Pillow turn a TIFF when they load it, and say its turned size before."""
    buffer = io.BytesIO()
    Image.new("L", (2, 1)).save(buffer, "TIFF", tiffinfo={TAG: 6})
    with Image.open(buffer) as image:
        return image.size == (1, 2)
