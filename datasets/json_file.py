"""Reads a JSON file; says what the file is where it is something else."""

import codecs
import json
from pathlib import Path
from typing import Any

from util.errors import UserError

UTF16 = "UTF-16 text; save it as UTF-8"
UTF32 = "UTF-32 text; save it as UTF-8"
PICTURE = "a picture; give the JSON file that lists the pictures"
# How other files begin, the longest first where one begins like another.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, UTF32),
    (codecs.BOM_UTF32_BE, UTF32),
    (codecs.BOM_UTF16_LE, UTF16),
    (codecs.BOM_UTF16_BE, UTF16),
    (b"\x1f\x8b", "compressed with gzip; unpack it first (gunzip)"),
    (b"BZh", "compressed with bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first (unzstd)"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"PK", "a zip archive; unpack it first (unzip)"),
    (b"\xff\xd8\xff", PICTURE),
    (b"\x89PNG", PICTURE),
    (b"GIF8", PICTURE),
    (b"BM", PICTURE),
    (b"II*\x00", PICTURE),
    (b"MM\x00*", PICTURE),
    (b"RIFF", PICTURE),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite", "an SQLite database"),
    (b"\x80", "a Python pickle"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file; fetch the file with 'git lfs pull'"),
    (b"<?xml", "XML"),
    (b"<", "a web page or XML; a download may have failed"),
)


def read_json(path: str | Path, what: str) -> Any:
    """Content of a JSON file in UTF-8, with or without a byte order mark; NaN and Infinity are read as numbers.

    Args:
        path: the file.
        what: what it is, for errors.

    Raises:
        UserError: no such file, or no JSON; says what the file is, as far as that can be told.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{what} '{path}' is a folder, not a file")
    if not path.is_file():
        raise UserError(f"no {what} '{path}'")
    data = path.read_bytes()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise UserError(f"{what} '{path}' is nested too deeply to be read") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise UserError(f"{what} '{path}' is {_instead(data, error)}") from None


def _instead(data: bytes, error: ValueError) -> str:
    """What a file is that is no JSON in UTF-8."""
    if not data.strip():
        return "not JSON: it is empty"
    for beginning, kind in BEGINNINGS:
        if data.startswith(beginning):
            return f"not JSON, but {kind}"
    encoding = json.detect_encoding(data)  # by where the zero bytes of the first letters are
    if encoding != "utf-8" and data[:8].decode(encoding, "replace").lstrip()[:1] in ("{", "["):
        return f"not JSON, but {UTF16 if '16' in encoding else UTF32}"
    if b"\x00" in data[:1000]:
        return "not JSON, but a binary file"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {data[error.start]:#04x} at {error.start}); save it as UTF-8"
    if _is_json_lines(data):
        return "not one JSON value, but one on each line (JSON Lines); put them into one list: [..., ...]"
    if isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc.rstrip()):
        return f"not JSON: it ends too early ({error}); a copy or download may be incomplete"
    return f"not JSON: {error}"


def _is_json_lines(data: bytes) -> bool:
    """Whether the first two lines are a JSON value each."""
    lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()][:2]
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict | list) for line in lines)
    except ValueError:
        return False
