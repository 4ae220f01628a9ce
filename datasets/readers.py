"""Which reader reads an annotation file. Another format is a file with its reader, and a line here."""

from collections.abc import Callable
from pathlib import Path

from datasets.annotations import Annotations
from datasets.coco import read_coco
from datasets.crowdhuman import read_crowdhuman
from datasets.visdrone import is_visdrone, read_visdrone
from util.remarks import say_once

Reader = Callable[[Path], Annotations]
READERS: dict[str, Reader] = {
    ".json": read_coco,
    ".odgt": read_crowdhuman,
}


def reader_of(path: str | Path) -> Reader:
    """The reader of a file, by its suffix, or of a folder, by its rows; any other file is taken for COCO JSON."""
    if is_visdrone(Path(path)):
        return read_visdrone
    return READERS.get(Path(path).suffix.lower(), read_coco)


def read_annotations(path: str | Path) -> Annotations:
    """What an annotation file says; what was read as something else than what is written is named on stderr.

    Raises:
        UserError: no such file, or one that its reader cannot read; names the entry.
    """
    annotations = reader_of(path)(Path(path))
    for remark in annotations.remarks:
        say_once(remark)
    return annotations
