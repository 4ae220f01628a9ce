import io
import re

import numpy as np
import pytest
from PIL import Image

from datasets.images import read_image, to_rgb
from tests.datasets.helpers import picture
from util.errors import UserError


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    assert image.mode == "RGB"
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


def reread(image: Image.Image, path, **options) -> Image.Image:
    image.save(path, **options)
    return read_image(path)


def test_grey_is_repeated_over_the_channels(tmp_path):
    image = Image.new("L", (2, 1))
    image.putdata([7, 200])
    assert pixels(reread(image, tmp_path / "a.png")) == [[(7, 7, 7), (200, 200, 200)]]


def test_one_bit_is_black_and_white(tmp_path):
    image = Image.new("1", (2, 1))
    image.putdata([0, 1])
    assert pixels(reread(image, tmp_path / "a.png")) == [[(0, 0, 0), (255, 255, 255)]]


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    return image


def test_palette_colours_are_looked_up(tmp_path):
    assert pixels(reread(palette(), tmp_path / "a.png")) == [[(10, 20, 30), (200, 100, 50)]]


def test_transparent_palette_entry_becomes_white(tmp_path):
    found = reread(palette(), tmp_path / "a.png", transparency=1)
    assert pixels(found) == [[(10, 20, 30), (255, 255, 255)]]


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("LA", [(80, 255), (80, 0), (0, 51)], [(80, 80, 80), (255, 255, 255), (204, 204, 204)]),
        ("RGBA", [(1, 2, 3, 255), (1, 2, 3, 0), (0, 100, 255, 51)], [(1, 2, 3), (255, 255, 255), (204, 224, 255)]),
    ],
)
def test_transparency_is_laid_on_white(tmp_path, mode, values, expected):
    image = Image.new(mode, (3, 1))
    image.putdata(values)
    assert pixels(reread(image, tmp_path / "a.png")) == [expected]


def test_transparent_colour_of_an_rgb_png_becomes_white(tmp_path):
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    assert pixels(reread(image, tmp_path / "a.png", transparency=(4, 5, 6))) == [[(1, 2, 3), (255, 255, 255)]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert image.mode == "I;16"
    assert pixels(reread(image, tmp_path / f"a.{suffix}")) == [[(v, v, v) for v in (0, 1, 128, 255)]]


def test_cmyk_jpeg_is_read_in_its_colours(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    colour = reread(image, tmp_path / "a.jpg", quality=95).getpixel((8, 8))
    assert np.abs(np.subtract(colour, (255, 0, 0))).max() <= 4


def test_floats_are_refused_by_name(tmp_path):
    image = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    image.save(tmp_path / "depth.tif")
    with pytest.raises(UserError, match=r"depth\.tif"):
        read_image(tmp_path / "depth.tif")


def rotated_jpeg(path) -> None:
    """Stored 20 wide and 10 high, left half red and right half blue; to be shown turned clockwise by 90 degrees."""
    image = Image.new("RGB", (20, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)


def close(colour: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return bool(np.abs(np.subtract(colour, expected)).max() < 12)


@pytest.mark.parametrize("annotated", [None, (10, 20), (7, 7)])
def test_exif_rotation_is_applied(tmp_path, annotated):
    rotated_jpeg(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg", annotated)
    assert image.size == (10, 20)
    assert close(image.getpixel((5, 2)), (255, 0, 0))
    assert close(image.getpixel((5, 17)), (0, 0, 255))


def test_exif_rotation_is_left_out_where_the_annotations_are_of_the_stored_picture(tmp_path):
    rotated_jpeg(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg", (20, 10))
    assert image.size == (20, 10)
    assert close(image.getpixel((2, 5)), (255, 0, 0))
    assert close(image.getpixel((17, 5)), (0, 0, 255))


def test_unreadable_exif_does_not_cost_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "WEBP", exif=exif)
    content = buffer.getvalue()
    assert content.count(b"MM\0*") == 1
    (tmp_path / "a.webp").write_bytes(content.replace(b"MM\0*", b"XX\0*"))
    assert read_image(tmp_path / "a.webp").size == (20, 10)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, suffix, kept):
    path = tmp_path / f"broken.{suffix}"
    picture(64, 48).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=re.escape(str(path))) as raised:
        read_image(path)
    assert "\n" not in str(raised.value)


def test_text_under_the_name_of_a_picture_is_named(tmp_path):
    (tmp_path / "note.jpg").write_text("not a picture\n" * 20)
    with pytest.raises(UserError, match=r"note\.jpg.*not a picture"):
        read_image(tmp_path / "note.jpg")


@pytest.mark.parametrize("name", ["gone.jpg", "empty.jpg", "folder.jpg"])
def test_missing_empty_and_folder_are_named(tmp_path, name):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match=re.escape(name)):
        read_image(tmp_path / name)


@pytest.mark.parametrize(("mode", "other"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_transparency_is_that_of_the_plain_mode(mode, other):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 3, len(other)), dtype=np.uint8))
    difference = np.subtract(to_rgb(image.convert(mode)), to_rgb(image), dtype=int)
    assert image.convert(mode).mode == mode and np.abs(difference).max() <= 2


def test_to_rgb_leaves_rgb_as_it_is():
    image = picture(5, 4)
    assert to_rgb(image).tobytes() == image.tobytes()
