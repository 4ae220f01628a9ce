"""Small data sets of Pascal VOC and YOLO on disk, written by hand: nothing here is the code under test."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from tests.datasets.helpers import picture


def voc_object(name: str, corners: Sequence[object], difficult: object = 0, more: str = "") -> str:
    """An `<object>` with xmin, ymin, xmax and ymax as they are given, over several lines as tools write it."""
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners)
    box = "\n".join(f"      <{tag}>{value}</{tag}>" for tag, value in tags)
    return (
        f"  <object>\n    <name>{escape(name)}</name>\n    <difficult>{difficult}</difficult>\n{more}"
        f"    <bndbox>\n{box}\n    </bndbox>\n  </object>\n"
    )


def voc_file(
    objects: Sequence[str] = (), filename: str = "a.png", size: tuple | None = (40, 30), head: str = ""
) -> str:
    """An XML file of Pascal VOC; its objects begin in line 4."""
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"{head}<annotation>\n  <filename>{filename}</filename>\n  {stated}\n{''.join(objects)}</annotation>\n"


def write(path: Path, text: str) -> Path:
    """Text in a file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def save_pictures(folder: Path, *names: str, size: tuple[int, int] = (40, 30)) -> Path:
    """Pictures of noise of this (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(*size).save(folder / name)
    return folder
