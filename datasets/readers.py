"""Which reader reads an annotation file. Another format is a file with its reader, and a line here."""

from collections.abc import Callable
from pathlib import Path

from datasets.annotations import Annotations
from datasets.coco import read_coco
from util.remarks import say_once

Reader = Callable[[Path], Annotations]
READERS: dict[str, Reader] = {
    ".json": read_coco,
}


def reader_of(path: str | Path) -> Reader:
    """The reader of a file, by its suffix; a file of any other suffix is taken for COCO JSON."""
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
