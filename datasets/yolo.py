"""YOLO text: for each picture a file with a line for each object, `class x y width height`.

The class is a number from 0. x and y are the centre of the box; all four are shares of the upright picture's width and
height, so its size must be known. With x = 0.5, y = 0.5, width = height = 1 the box is the whole picture: edges are
where they lie, and nothing is rounded. A line with the corners of a polygon instead, at least three, stands for the
smallest box around it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets.annotations import Annotations, CategoryEntry
from datasets.headers import read_header
from datasets.labelled import LabelledObject, LabelledPicture, Tally, to_annotations
from datasets.listing import files_below, pictures_below, read_lines
from datasets.values import as_float, as_whole
from datasets.yolo_layout import Layout, layout_of
from util.errors import UserError
from util.progress import progress

THREADS = 8  # what is slow is to wait for a disk or a network
POLYGON = "objects are polygons; the boxes around them are taken"
KEYPOINTS = "objects have keypoints, which are left out"
SCORE = "lines have a sixth number, a score, which is left out"
UNMATCHED = "label files have no picture and are left out"
UNREAD = "pictures cannot be read, so that the size of their boxes is not known; the objects are left out"


def read_yolo(path: Path, images: Path | None = None, split: str = "train", classes: Path | None = None) -> Annotations:
    """What the label files of YOLO say. The classes keep their numbers, from 0; pictures without labels stay in.

    Args:
        path: `data.yaml`, a folder that holds it, or the folder of the label files.
        images: the image folder; None takes the one beside the labels, or that of `data.yaml`.
        split: the key of `data.yaml` that names it.
        classes: a list of classes, one on each line, in place of the names that lie near.

    Raises:
        UserError: a file is missing or malformed; names the line.
    """
    layout, tally = layout_of(path, images, split, classes), Tally()
    pictures = pictures_below(layout.images)
    if not pictures:
        raise UserError(f"image folder '{layout.images}' holds no pictures")
    labels = files_below(layout.labels, [".txt"])
    if "classes" not in pictures:
        labels.pop("classes", None)
    if not pictures.keys() & labels.keys():
        there = f"holds {len(labels)} label files, such as '{next(iter(labels))}.txt'" if labels else "holds none"
        raise UserError(f"no picture of '{layout.images}' has a label file in '{layout.labels}', which {there}")
    for stem in labels.keys() - pictures.keys():
        tally.add(UNMATCHED, labels[stem][0])
    listed = [(file, stem) for stem, files in pictures.items() for file in files]
    sizes = _sizes(layout.images, [file for file, _ in listed])
    labelled = []
    for (file, stem), size in zip(listed, sizes):
        picture = LabelledPicture(file, size)
        if stem in labels:
            objects = _objects(layout.labels / labels[stem][0], layout, size or (1, 1), tally)
            if objects and size is None:
                tally.add(UNREAD, file)
            picture.objects = objects if size else []
        labelled.append(picture)
    categories = [CategoryEntry(number, layout.names[number]) for number in sorted(layout.names)]
    return to_annotations(path, categories, labelled, tally.remarks(path))


def _sizes(folder: Path, files: Sequence[str]) -> list[tuple[int, int] | None]:
    """(width, height) of the upright pictures, from their headers; None of one that cannot be opened."""

    def size_of(file: str) -> tuple[int, int] | None:
        try:
            return read_header(folder / file, lenient=True).upright_size
        except UserError:  # whoever needs the picture says why
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(progress(pool.map(size_of, files), "reading sizes of images", total=len(files)))


def _objects(file: Path, layout: Layout, size: tuple[int, int], tally: Tally) -> list[LabelledObject]:
    """The objects of a label file, with boxes in pixels.

    Raises:
        UserError: a line is malformed; names it.
    """
    objects = []
    for number, line in enumerate(read_lines(file, "label file"), 1):
        if not line:
            continue
        words, where = line.split(), f"{file.name}, line {number}"
        values = [as_float(word) for word in words]
        if None in values:
            raise UserError(f"'{file}', line {number}: '{words[values.index(None)][:40]}' is no number")
        numbers = [value for value in values if value is not None]
        label = as_whole(numbers[0])
        if label is None or label not in layout.names:
            raise UserError(
                f"'{file}', line {number}: the class {words[0]} is not one of the {len(layout.names)} that are named, "
                f"{min(layout.names)} to {max(layout.names)}"
            )
        kind, box = _box(numbers[1:], layout.keypoints)
        if box is None:
            raise UserError(
                f"'{file}', line {number}: {len(numbers)} numbers; it must be 5, class x y width height, or an odd "
                "number of at least 7, the corners of a polygon"
            )
        if kind:
            tally.add(kind, where)
        left, top, width, height = box
        objects.append(LabelledObject(label, (left * size[0], top * size[1], width * size[0], height * size[1])))
    return objects


def _box(values: Sequence[float], keypoints: int) -> tuple[str, tuple[float, float, float, float] | None]:
    """What is remarkable about the numbers behind a class, and their box [x, y, width, height] in shares."""
    count = len(values)
    if count in (4, 5) or (keypoints and count == 4 + keypoints):
        x, y, width, height = values[:4]
        kind = "" if count == 4 else SCORE if count == 5 else KEYPOINTS
        return kind, (x - width / 2, y - height / 2, width, height)
    if count < 6 or count % 2:
        return "", None
    xs, ys = values[0::2], values[1::2]
    return POLYGON, (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
