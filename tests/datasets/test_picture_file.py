import os
import re
import warnings
from pathlib import Path

import pytest
from PIL import Image, ImageFile, PngImagePlugin

from datasets import picture_file
from datasets.images import read_image
from datasets.picture_file import BrokenImage, MissingImage, opened, without_exif
from tests.datasets.helpers import picture
from util.errors import UserError


def refusal(path: Path, kind=UserError) -> str:
    with pytest.raises(kind) as raised:
        read_image(path)
    said = str(raised.value)
    assert type(raised.value) is kind and str(path) in said and "\n" not in said
    return said


def test_more_pixels_than_pillow_takes_for_an_attack_are_read(tmp_path, monkeypatch):
    picture(30, 20).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # more than twice as many are its error, fewer its warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").tobytes() == picture(30, 20).tobytes()
        picture(15, 10).save(tmp_path / "b.png")
        assert read_image(tmp_path / "b.png").size == (15, 10)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    picture(3000, 2).save(tmp_path / "a.png")
    monkeypatch.setattr(picture_file, "MOST_PIXELS", 5000)
    picture_file.most_pixels.cache_clear()
    with monkeypatch.context() as context:
        context.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        said = refusal(tmp_path / "a.png")
    picture_file.most_pixels.cache_clear()
    assert "3000x2" in said and "tiles" in said and "truncated" not in said


def test_a_header_of_ten_gigapixels_is_refused_with_both_numbers(tmp_path):
    Image.new("1", (8, 8)).save(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(content)
    said = refusal(tmp_path / "a.bmp")
    assert "10,000 megapixels (100000x100000)" in said
    assert f"{picture_file.most_pixels() / 1e6:,.0f}" in said and picture_file.most_pixels() <= 10**9


def test_long_notes_in_a_png_are_no_damage(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("history", "edited " * 300_000, zip=True)
    picture(8, 8).save(tmp_path / "a.png", pnginfo=notes)
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    with pytest.raises(ValueError, match="too large"), Image.open(tmp_path / "a.png") as image:
        image.load()
    assert read_image(tmp_path / "a.png").size == (8, 8)
    assert limit == PngImagePlugin.MAX_TEXT_CHUNK


def test_what_is_no_picture_is_told_apart(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.jpg", BrokenImage)
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    assert "not a picture" in refusal(tmp_path / "page.jpg", BrokenImage)
    (tmp_path / "folder.jpg").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.jpg")
    assert refusal(tmp_path / "gone.jpg", MissingImage) == f"no image '{tmp_path / 'gone.jpg'}'"
    assert "no image" in refusal(tmp_path / "empty.jpg" / "a.jpg", MissingImage)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_links_and_pipes_are_told(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "b.jpg")
    assert "link to" in refusal(tmp_path / "a.jpg", MissingImage)
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
    assert re.search("levels of symbolic links", refusal(tmp_path / "a.jpg"))
    os.mkfifo(tmp_path / "c.jpg")
    assert "no regular file" in refusal(tmp_path / "c.jpg")


@pytest.mark.parametrize("place", ["stat", "open"])
def test_permission_and_disk_are_no_damage_of_the_picture(tmp_path, monkeypatch, place):
    """A disk that fails must not look as if pictures were broken, which may be passed over."""

    def fails(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    picture(8, 8).save(tmp_path / "a.png")
    monkeypatch.setattr(Path if place == "stat" else Image, place, fails)
    assert "cannot be opened: Permission denied" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("error", [AttributeError("x"), KeyError(3), RuntimeError(), ZeroDivisionError("by zero")])
def test_whatever_a_decoder_raises_is_a_sentence(tmp_path, monkeypatch, error):
    def fails(self):
        raise error

    picture(8, 8).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    assert "may be truncated or corrupt: " in refusal(tmp_path / "a.png", BrokenImage)


@pytest.mark.parametrize(("form", "kept"), [("JPEG", -20), ("JPEG", 700), ("PNG", -60), ("PNG", 500), ("BMP", 900)])
def test_of_a_damaged_file_as_much_is_taken_as_pillow_takes(tmp_path, monkeypatch, form, kept):
    picture(40, 30).save(tmp_path / "a", form)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:kept])
    refusal(tmp_path / "a", BrokenImage)
    found = read_image(tmp_path / "a", lenient=True)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(tmp_path / "a") as image:
        expected = image.convert("RGB")
    assert found.tobytes() == expected.tobytes()


def test_exif_is_taken_out_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(8, 8).save(tmp_path / "a.jpg", exif=exif)
    picture(8, 8).save(tmp_path / "b.jpg")
    content, taken = without_exif((tmp_path / "a.jpg").read_bytes())
    assert content == (tmp_path / "b.jpg").read_bytes()
    assert taken == exif.tobytes().removeprefix(b"Exif\0\0")
    for other in (b"", b"\xff", b"text", b"\xff\xd8\xff\xe1\xff"):
        assert without_exif(other) == (other, b"")


def test_the_block_of_an_opened_picture_can_load_it(tmp_path):
    picture(8, 6).save(tmp_path / "a.png")
    with opened(tmp_path / "a.png") as image:
        assert image.size == (8, 6)
        image.load()
