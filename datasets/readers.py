"""Which reader reads an annotation file. Another format is a file with its reader, and a line here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets.annotations import Annotations
from datasets.coco import read_coco
from datasets.crowdhuman import read_crowdhuman
from datasets.listing import files_below
from datasets.visdrone import is_visdrone, read_visdrone
from datasets.voc import read_voc
from datasets.yolo import read_yolo
from datasets.yolo_layout import description_in
from util.errors import UserError
from util.remarks import say_once

Reader = Callable[[Path], Annotations]
READERS: dict[str, Reader] = {
    ".json": read_coco,
    ".odgt": read_crowdhuman,
}
# Formats with a file for each picture: which are meant, and how large they are, the image folder tells.
BESIDE_PICTURES: dict[str, Callable[..., Annotations]] = {
    ".xml": read_voc,
    ".txt": read_voc,  # a list of names
    ".yaml": read_yolo,
    ".yml": read_yolo,
}


def reader_of(path: str | Path, images: str | Path | None = None) -> Reader:
    """The reader of a file, by its suffix, or of a folder, by what is in it; any other file is taken for COCO JSON.

    Args:
        path: the annotation file; for VOC and YOLO also a folder.
        images: the image folder, if it is known.

    Raises:
        UserError: a folder with nothing in it that is read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if is_visdrone(path):
        return read_visdrone
    if path.is_dir():
        beside = _of_folder(path)
    elif suffix in BESIDE_PICTURES and path.is_file() and not _is_json(path):
        beside = BESIDE_PICTURES[suffix]
    else:
        return READERS.get(suffix, read_coco)
    return partial(beside, images=Path(images) if images else None)


def _of_folder(folder: Path) -> Callable[..., Annotations]:
    if description_in(folder):
        return read_yolo
    if files_below(folder, [".xml"]):
        return read_voc
    if files_below(folder, [".txt"]):
        return read_yolo
    raise UserError(f"annotation file '{folder}' is a folder, with neither XML files of Pascal VOC nor texts of YOLO")


def _is_json(path: Path) -> bool:
    """Whether a text may be JSON under another suffix."""
    with path.open("rb") as file:
        return file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def read_annotations(path: str | Path, images: str | Path | None = None) -> Annotations:
    """What an annotation file says; what was read as something else than what is written is named on stderr.

    Args:
        path: the file; for VOC and YOLO also a folder.
        images: the image folder, if it is known.

    Raises:
        UserError: no such file, or one that its reader cannot read; names the entry.
    """
    annotations = reader_of(path, images)(Path(path))
    for remark in annotations.remarks:
        say_once(remark)
    return annotations
