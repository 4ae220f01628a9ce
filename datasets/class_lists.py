"""The classes that images of an annotation file list, in two columns."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from datasets.entries import Id
from datasets.id_column import IdColumn
from util.shared import SharesArrays, shared


class ClassLists(SharesArrays, Mapping[Id, tuple[Id, ...]]):
    """Ids of classes by the id of an image, equal to a dictionary of the same.

    Args:
        images: ids of I images that list a class; no two are one.
        counts: `[I]`, how many classes each of them lists, at least 1.
        classes: ids of the classes, those of one image after those of another.
    """

    def __init__(self, images: IdColumn, counts: np.ndarray, classes: IdColumn):
        self.images, self.classes = images, classes
        (self.ends,) = shared(np.append(0, np.cumsum(counts)))

    @classmethod
    def of(cls, listed: Iterable[tuple[Id, Sequence[Id]]]) -> "ClassLists":
        """The lists of these images, in their order; an image with an empty one is left out."""
        kept = [(image, classes) for image, classes in listed if classes]
        counts = np.fromiter((len(classes) for _, classes in kept), np.int64, len(kept))
        classes = IdColumn.of(category for _, of_image in kept for category in of_image)
        return cls(IdColumn.of(image for image, _ in kept), counts, classes)

    def pairs_in(self, images: IdColumn, classes: IdColumn) -> tuple[np.ndarray, np.ndarray]:
        """Each listed class as two positions, `[P]` of its image and `[P]` of itself, in columns of ids that differ.

        Those that a column does not have are left out.
        """
        image_at = np.repeat(self.images.positions_in(images), np.diff(self.ends))
        class_at = self.classes.positions_in(classes)
        known = (image_at >= 0) & (class_at >= 0)
        return image_at[known].astype(np.int64), class_at[known].astype(np.int64)

    def to_dict(self) -> dict[Id, tuple[Id, ...]]:
        """The dictionary."""
        classes, ends = list(self.classes), self.ends.tolist()
        return {image: tuple(classes[a:b]) for image, a, b in zip(self.images, ends, ends[1:])}

    def __getitem__(self, image: Id) -> tuple[Id, ...]:
        row = self.images.find(image)
        if row < 0:
            raise KeyError(image)
        return tuple(self.classes.take(np.arange(self.ends[row], self.ends[row + 1])))

    def __iter__(self) -> Iterator[Id]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == dict(other) if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]
