"""The images of an annotation file in columns; an entry is made when it is asked for."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from datasets.entries import ImageEntry
from datasets.id_column import IdColumn
from datasets.texts import Texts
from util.shared import SharesArrays, shared

UNKNOWN = -1  # a side that the file does not say


class ImageTable(SharesArrays, Sequence[ImageEntry]):
    """A sequence of `ImageEntry`, equal to a list of the same.

    Args:
        ids: of each image.
        names: its file name.
        sides: `[N, 2]`, int32, (width, height) in pixels; -1 for a side that is not known.
    """

    def __init__(self, ids: IdColumn, names: Texts, sides: np.ndarray):
        self.ids, self.names = ids, names
        (self.sides,) = shared(sides)

    @classmethod
    def of(cls, entries: Iterable[ImageEntry]) -> "ImageTable":
        """A table of these entries."""
        if isinstance(entries, ImageTable):
            return entries
        listed = list(entries)
        sides = [UNKNOWN if side is None else side for entry in listed for side in (entry.width, entry.height)]
        return cls(
            IdColumn.of([entry.id for entry in listed]),
            Texts.of([entry.file_name for entry in listed]),
            np.array(sides, dtype=np.int32).reshape(-1, 2),
        )

    @property
    def sizes(self) -> np.ndarray:
        """`[N, 2]`, float64, (width, height) in pixels; infinite where either is not known."""
        known = np.all(self.sides != UNKNOWN, axis=1)
        return np.where(known[:, None], self.sides, np.inf)

    def take(self, rows: np.ndarray) -> "ImageTable":
        """The table of some rows, in their order."""
        return ImageTable(self.ids.take(rows), self.names.take(rows), self.sides[rows])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # an entry, or a table of some
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return _entry(self.ids[row], self.names[row], self.sides[row].tolist())

    def __iter__(self) -> Iterator[ImageEntry]:
        return map(_entry, self.ids, self.names, self.sides.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ImageTable):
            alike = np.array_equal(self.sides, other.sides) and np.array_equal(self.names.ends, other.names.ends)
            return alike and np.array_equal(self.names.letters, other.names.letters) and self.ids == other.ids
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _entry(number, name: str, sides: list[int]) -> ImageEntry:  # type: ignore[no-untyped-def]
    width, height = sides
    return ImageEntry(number, name, None if width == UNKNOWN else width, None if height == UNKNOWN else height)
