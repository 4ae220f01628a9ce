"""VisDrone's annotations of images (arXiv 2001.06303, detection in images): a folder with a text for each picture.

A row is `left,top,width,height,score,category,truncation,occlusion`. The format fixes the classes, 1 to 10. A score of
0 says that the box does not count. Category 0 is a region in which nothing was annotated, and 11 holds objects of other
kinds. In both nothing counts, whatever its class.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from datasets.annotations import Annotations, ImageEntry
from datasets.rows import Row, annotations_of, four_numbers
from datasets.values import as_float, as_whole
from util.errors import UserError

NAMES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)
IGNORED_REGION, OTHERS = 0, 11
FIELDS = 8


def is_visdrone(path: Path) -> bool:
    """Whether this is a folder of VisDrone's texts, by the first row that is found: eight numbers with commas.

    No other format has such rows, so that the reader names a number that VisDrone has not, such as a score of 0.9.
    """
    for file in _texts(path) if path.is_dir() else ():
        with file.open("rb") as content:
            row = content.readline(200).removeprefix(BOM_UTF8).strip().rstrip(b",")
        if row:
            values = row.decode("latin-1").split(",")
            return len(values) == FIELDS and all(as_float(value) is not None for value in values)
    return False


def read_visdrone(path: Path) -> Annotations:
    """What the texts of a folder say. The picture of `NAME.txt` is `NAME.jpg`.

    Raises:
        UserError: no such folder, or a row that is none; names the line.
    """
    if not path.is_dir():
        raise UserError(f"no folder of annotations '{path}'")
    images: list[ImageEntry] = []
    rows: list[Row] = []
    for file in _texts(path):
        images.append(ImageEntry(file.stem, f"{file.stem}.jpg"))
        rows += _rows(file)
    return annotations_of(path, NAMES, images, rows)


def _texts(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix.lower() == ".txt" and file.is_file())


def _rows(file: Path) -> Iterator[Row]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        values = line.strip().rstrip(",").split(",")
        box, rest = four_numbers(values[:4]), [as_whole(value) for value in values[4:6]]
        if len(values) != FIELDS or box is None or len(rest) < 2 or None in rest:
            raise UserError(
                f"line {number} of '{file}' is '{line.strip()[:60]}'; it must be eight numbers "
                "left,top,width,height,score,category,truncation,occlusion"
            )
        score, category = rest
        if category in (IGNORED_REGION, OTHERS):
            yield Row(file.stem, box, None, True)
        elif category is not None and 1 <= category <= len(NAMES):
            yield Row(file.stem, box, category, score == 0)
        else:
            raise UserError(f"line {number} of '{file}' has the category {category}; VisDrone's are 0 to {OTHERS}")
