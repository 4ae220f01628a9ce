"""What formats with a file for each picture have in common: pictures, their objects, and how these become columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from datasets.annotations import Annotations, CategoryEntry
from datasets.annotations import ImageEntry as Entry

SHOWN = 3  # places that a remark names


class LabelledObject(NamedTuple):
    """An object of a picture.

    Attributes:
        category: id of its class.
        box: [x, y, width, height] in pixels.
        crowd: whether it is kept out of learning, and finding it is neither right nor wrong.
    """

    category: int
    box: tuple[float, float, float, float]
    crowd: bool = False


@dataclass
class LabelledPicture:
    """A picture as its own file of labels describes it.

    Attributes:
        file_name: in the image folder.
        size: (width, height) in pixels, if it is known.
        objects: in the order of the file.
    """

    file_name: str
    size: tuple[int, int] | None
    objects: list[LabelledObject] = field(default_factory=list)


def to_annotations(
    source: str | Path, categories: list[CategoryEntry], pictures: Sequence[LabelledPicture], remarks: list[str]
) -> Annotations:
    """Pictures and their objects as annotations; both are numbered 1, 2, ... in their order.

    Args:
        source: file or folder, which errors name.
        categories: the classes.
        pictures: with their objects; the area of an object is that of its box.
        remarks: a sentence on each kind of value that was left out or read as something else than it says.
    """
    images = [Entry(i, p.file_name, *(p.size or (None, None))) for i, p in enumerate(pictures, 1)]
    objects = [(i, o.category, o.box, o.crowd) for i, picture in enumerate(pictures, 1) for o in picture.objects]
    return Annotations.of_boxes(Path(source), categories, images, objects, remarks)


class Tally:
    """Counts what is left out or read as something else, by kind, and keeps the first places of each."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, place: str) -> None:
        """One more of a kind, which is a sentence that speaks of several."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= SHOWN:
            self._places.setdefault(kind, []).append(place)

    def remarks(self, source: str | Path) -> list[str]:
        """A sentence on each kind."""
        said = []
        for kind, count in self._counts.items():
            more = ", ..." if count > SHOWN else ""
            said.append(f"'{source}': {kind}: {count} ({', '.join(self._places[kind])}{more})")
        return said
