import io

import numpy as np
import pytest
from PIL import Image

from datasets.headers import Header, read_header
from datasets.picture_file import BrokenImage
from tests.datasets.helpers import picture
from util.errors import UserError


def saved(form: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, form, **options)
    return buffer.getvalue()


FORMS = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "JPEG2000"]


@pytest.mark.parametrize("form", FORMS)
def test_size_and_end_are_read(tmp_path, form):
    (tmp_path / "a").write_bytes(saved(form))
    assert read_header(tmp_path / "a") == Header((40, 30), 1, True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [20, 300])
def test_a_cut_file_is_suspicious(tmp_path, form, cut):
    content = saved(form)
    (tmp_path / "a").write_bytes(content[:-cut])
    try:
        assert not read_header(tmp_path / "a").whole
    except BrokenImage:
        assert form in ("GIF", "JPEG2000", "TIFF")  # in which less of the file may be header


def test_a_cut_webp_is_suspicious_or_broken(tmp_path):
    content = saved("WEBP", lossless=True)
    (tmp_path / "a").write_bytes(content)
    assert read_header(tmp_path / "a").whole
    (tmp_path / "a").write_bytes(content[:-20])
    with pytest.raises(BrokenImage):
        read_header(tmp_path / "a")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_padding_after_the_end_is_whole_and_other_bytes_are_to_be_decoded(tmp_path, form):
    (tmp_path / "a").write_bytes(saved(form) + b"\0\r\n" * 5)
    assert read_header(tmp_path / "a").whole
    (tmp_path / "a").write_bytes(saved(form) + b"trailing" * 100)
    assert not read_header(tmp_path / "a").whole


def test_an_orientation_is_read_with_the_stored_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "a").write_bytes(saved("JPEG", exif=exif))
    header = read_header(tmp_path / "a")
    assert header == Header((40, 30), 8, True) and header.upright_size == (30, 40)
    (tmp_path / "a").write_bytes(saved("TIFF", tiffinfo={0x0112: 6}))
    header = read_header(tmp_path / "a")
    assert header == Header((40, 30), 6, True) and header.upright_size == (30, 40)


def test_floats_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(UserError, match=r"depth\.tif.*floats"):
        read_header(tmp_path / "depth.tif")
