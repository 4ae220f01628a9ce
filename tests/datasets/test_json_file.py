import codecs
import gzip
import io
import json
import math
import zipfile

import pytest
from PIL import Image

from datasets.json_file import read_json
from util.errors import UserError

TEXT = '{"images": ["ä"]}'


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.json", TEXT)
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("data", [TEXT.encode(), codecs.BOM_UTF8 + TEXT.encode(), b" \r\n" + TEXT.encode() + b"\n\n"])
def test_utf8_is_read_with_and_without_a_mark(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    assert read_json(tmp_path / "a.json", "annotation file") == {"images": ["ä"]}


def test_numbers_that_json_does_not_have_are_read(tmp_path):
    (tmp_path / "a.json").write_text("[NaN, Infinity, -Infinity, 1e999]")
    first, *others = read_json(tmp_path / "a.json", "annotation file")
    assert math.isnan(first) and others == [math.inf, -math.inf, math.inf]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TEXT.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "UTF-16 text; save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "UTF-16 text; save it as UTF-8"),
        (TEXT.encode("utf-16-be"), "UTF-16 text; save it as UTF-8"),
        (TEXT.encode("utf-32"), "UTF-32 text; save it as UTF-8"),
        (TEXT.encode("latin-1"), "not UTF-8 text (byte 0xe4 at 13); save it as UTF-8"),
        (gzip.compress(TEXT.encode()), "compressed with gzip; unpack it first"),
        (zipped(), "a zip archive; unpack it first"),
        (picture("png"), "a picture; give the JSON file"),
        (picture("jpeg"), "a picture; give the JSON file"),
        (picture("webp"), "a picture; give the JSON file"),
        (b"\x00\x01\x02binary", "a binary file"),
        (b"<!DOCTYPE html><html></html>", "a web page or XML"),
        (b"<?xml version='1.0'?><annotation/>", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a": 1}\n{"a": 2}\n', "JSON Lines"),
        (b'{"a": [1, 2', "it ends too early"),
        (b"{'a': 1}", "not JSON: Expecting property name"),
        (b"[1, 2,, 3]", "not JSON: "),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "not JSON: "),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_what_is_no_json_in_utf8_is_named_in_one_line(tmp_path, data, said):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError) as raised:
        read_json(tmp_path / "a.json", "file of detections")
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"file of detections '{tmp_path / 'a.json'}' is ")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no annotation file .*gone\.json"):
        read_json(tmp_path / "gone.json", "annotation file")
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path, "annotation file")


def test_a_long_list_of_numbers_is_no_json_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([1, 2], indent=1) + "]")
    with pytest.raises(UserError, match="Extra data"):
        read_json(tmp_path / "a.json", "annotation file")
