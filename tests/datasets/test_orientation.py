import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from datasets.images import read_image, upright
from datasets.orientation import TAG, stored_orientation, stored_size, tag_of
from tests.datasets.helpers import picture

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def saved(path, form: str, orientation: int) -> Image.Image:
    """A picture of 20x30 in a file of the form, and as it was before."""
    image, exif = picture(20, 30), Image.Exif()
    exif[TAG] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    options = {"tiffinfo": {TAG: orientation}} if form == "TIFF" else {"exif": exif, **lossless}
    image.save(path, form, **options)
    return image


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, form, orientation):
    stored = saved(tmp_path / "a", form, orientation)
    with Image.open(tmp_path / "a") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    found, raw = read_image(tmp_path / "a"), read_image(tmp_path / "a", frame="raw")
    assert (found.size, found.tobytes()) == (expected.size, expected.tobytes())
    assert raw.size == stored.size and (form == "JPEG" or raw.tobytes() == stored.tobytes())
    with Image.open(tmp_path / "a") as image:
        assert stored_size(image) == (20, 30)
        assert stored_orientation(image) == (orientation if 1 <= orientation <= 8 else 1)
        assert upright(image).convert("RGB").tobytes() == expected.tobytes()
    assert upright(found).tobytes() == expected.tobytes()  # it is not turned twice


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_counts_as_for_pillow(tmp_path, form):
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", XMP)
    options = {"PNG": {"pnginfo": notes}, "TIFF": {"tiffinfo": {700: XMP.encode()}}}
    picture(20, 30).save(tmp_path / "a", form, **options.get(form, {"xmp": XMP.encode()}))
    with Image.open(tmp_path / "a") as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert expected.size == (30, 20)
    assert read_image(tmp_path / "a").tobytes() == expected.tobytes()
    assert read_image(tmp_path / "a", frame="raw").size == (20, 30)


def tiff(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """A TIFF of one directory of (tag, type, count, four bytes)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    rows = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(order + "H", len(entries)) + rows + bytes(4)


OTHER = [(0x010F, 2, 900, b"\xff\xff\xff\x7f"), (0x011A, 77, 1, b"xxxx")]  # text far beyond the end; an unknown type


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ((TAG, 3, 1, b"\6\0\0\0"), 6),
        ((TAG, 4, 1, b"\3\0\0\0"), 3),
        ((TAG, 1, 1, b"\x08\0\0\0"), 8),
        ((TAG, 8, 1, b"\xff\xff\0\0"), -1),
        ((TAG, 2, 2, b"6\0\0\0"), 0),  # text
        ((TAG, 3, 2, b"\6\0\6\0"), 0),  # two numbers
        ((TAG, 5, 1, b"\6\0\0\0"), 0),  # a fraction
        ((0x0100, 3, 1, b"\6\0\0\0"), None),
    ],
)
def test_the_tag_is_read_among_others_that_are_malformed(entry, expected):
    assert tag_of(tiff(*OTHER, entry, OTHER[0])) == expected


def test_the_other_byte_order_is_read():
    assert tag_of(tiff((TAG, 3, 1, b"\0\6\0\0"), order=">")) == 6


@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize(
    "bad",
    [
        (0x011A, 5, 1, b"\xf0\xff\xff\xff"),  # a resolution that lies nowhere
        (0x011A, 2, 4, b"abc\0"),  # a resolution that is text
        (0x011A, 5, 0, bytes(4)),  # a resolution of no value
        (0x8769, 3, 1, bytes(4)),  # a directory in the place of a number
        (0x0132, 10, 1, b"\x08\0\0\0"),  # a date that is a fraction
    ],
)
def test_malformed_tags_neither_cost_a_picture_nor_its_turn(tmp_path, bad, turn, jfif):
    """Without JFIF Pillow looks for the resolution in the EXIF as it opens the file."""
    buffer = io.BytesIO()
    exif = b"Exif\0\0" + tiff((TAG, 3, 1, bytes([turn, 0, 0, 0])), (0x0128, 3, 1, b"\2\0\0\0"), bad)
    picture(20, 30).save(buffer, "JPEG", exif=exif)
    content = buffer.getvalue()
    if not jfif:
        assert content[2:4] == b"\xff\xe0"
        content = content[:2] + content[4 + int.from_bytes(content[4:6], "big") :]
    (tmp_path / "a.jpg").write_bytes(content)
    found = read_image(tmp_path / "a.jpg")
    assert found.size == ((20, 30) if turn == 1 else (30, 20))


@pytest.mark.parametrize("cut", [0, 3, 8, 9, 15, 20])
def test_cut_exif_is_no_turn(tmp_path, cut):
    exif = b"Exif\0\0" + tiff((TAG, 3, 1, b"\6\0\0\0"))[:cut]
    picture(20, 30).save(tmp_path / "a.webp", exif=exif)
    assert read_image(tmp_path / "a.webp").size == (20, 30)
    assert np.asarray(read_image(tmp_path / "a.webp")).shape == (30, 20, 3)
