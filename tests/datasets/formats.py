"""Small data sets of Pascal VOC, YOLO and LVIS on disk, written by hand: nothing here is the code under test."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from tests.datasets.helpers import add_lists, picture


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


def write_lvis(source: Path, pictures: str, file: Path) -> None:
    """A COCO file as LVIS v1 has it: addresses for names, with the folder of the pictures; lists; frequencies."""
    content = json.loads(source.read_text())
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/{pictures}/{image.pop('file_name')}"
    content["categories"] = [c | {"frequency": "rcf"[i % 3]} for i, c in enumerate(content["categories"])]
    file.write_text(json.dumps(content))
    add_lists(file)


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


def write_other_formats(shapes: Path, voc: Path, yolo: Path) -> None:
    """A data set in COCO 2017 layout once more: as the development kit of VOC lays it out, and as YOLO."""
    for split in ("train", "val"):
        content = json.loads((shapes / "annotations" / f"instances_{split}2017.json").read_text())
        names = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
        number_of = {c["id"]: names.index(c["name"]) for c in content["categories"]}
        stems = []
        for image in content["images"]:
            objects, lines, stem = [], [], f"{split}_{Path(image['file_name']).stem}"
            size = (image["width"], image["height"])
            for a in content["annotations"]:
                if a["image_id"] == image["id"]:
                    x, y, w, h = a["bbox"]
                    k = number_of[a["category_id"]]
                    objects.append(voc_object(names[k], (x + 1, y + 1, x + w, y + h)))
                    shares = (x + w / 2) / size[0], (y + h / 2) / size[1], w / size[0], h / size[1]
                    lines.append(f"{k} {' '.join(map(repr, shares))}\n")
            source = shapes / f"{split}2017" / image["file_name"]
            for folder in (voc / "JPEGImages", yolo / "images" / split):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / f"{stem}{source.suffix}")
            write(voc / "Annotations" / f"{stem}.xml", voc_file(objects, stem + source.suffix, size))
            write(yolo / "labels" / split / f"{stem}.txt", "".join(lines))
            stems.append(stem)
        write(voc / "ImageSets" / "Main" / f"{split}.txt", "\n".join(stems))
    write(yolo / "data.yaml", f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")
