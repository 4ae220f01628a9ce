"""Annotations of a format whose classes are fixed: from a row for each box."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.annotations import Annotations, CategoryEntry, Id, ImageEntry
from datasets.values import as_float


@dataclass
class Row:
    """A box as a file lists it.

    Attributes:
        image: id of its image.
        box: [x, y, width, height] in pixels.
        category: its class, from 1; None for a region in which the objects of all classes are left out.
        ignored: whether it is left out, as a crowd is: no object to learn from, neither right nor wrong to find.
    """

    image: Id
    box: Sequence[float]
    category: int | None
    ignored: bool


def annotations_of(
    source: Path, names: Sequence[str], images: Sequence[ImageEntry], rows: Sequence[Row]
) -> Annotations:
    """Annotations from rows. A region of all classes becomes a crowd of each.

    Args:
        source: the file or folder, which errors name.
        names: of the classes; their ids count from 1.
        images: the images, some of which may have no row.
        rows: boxes, in any order.
    """
    every = range(1, len(names) + 1)
    spread = [(row, k) for row in rows for k in (every if row.category is None else (row.category,))]
    categories = [CategoryEntry(k, name) for k, name in zip(every, names)]
    return Annotations.of_boxes(source, categories, images, [(r.image, k, r.box, r.ignored) for r, k in spread])


def four_numbers(values: Sequence[object]) -> list[float] | None:
    """A box of four numbers, also written as text; None for anything else."""
    numbers = [number for value in values if (number := as_float(value)) is not None]
    return numbers if len(numbers) == len(values) == 4 else None
