"""What the annotation file of a data set says, whatever its format: classes, images and objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets.class_lists import ClassLists
from datasets.entries import CategoryEntry, Id, ImageEntry
from datasets.id_column import IdColumn
from datasets.image_table import ImageTable
from util.shared import SharesArrays, shared

__all__ = ["Annotations", "CategoryEntry", "Id", "ImageEntry"]

COLUMNS: dict[str, Any] = {"images": ImageTable, "ids": IdColumn, "image_ids": IdColumn, "category_ids": IdColumn}


@dataclass(frozen=True)
class Federated:
    """Which classes were looked for in which image, for a file whose images are not searched for all classes (LVIS).

    A class that an image has objects of was looked for; of all others, beside these, nothing is known.

    Attributes:
        negatives: ids of the classes that were looked for in an image and are not there, by the image's id.
        not_exhaustive: ids of the classes of which an image has more objects than are listed, by the image's id.
        frequencies: of each class, by its id: `r`, `c` or `f` (rare, common, frequent); empty if the file does not say.
    """

    negatives: ClassLists
    not_exhaustive: ClassLists
    frequencies: Mapping[Id, str] = field(default_factory=dict)


@dataclass
class Annotations(SharesArrays):
    """A whole annotation file. Objects lie in columns: a row of each column is one object.

    It may be made of lists, and keeps arrays, which workers share: no image and no object is an object of Python's.

    Attributes:
        source: the file, which errors name.
        categories: in the file's order; no two have one id; at least one, unless objects are not known.
        images: in the file's order; no two have one id.
        ids: id of each object, for errors; they need not be unique.
        image_ids, category_ids: image and class of each object, as written; the file need not list them.
        boxes: `[N, 4]`, float64, [x, y, width, height] in pixels as written, however impossible.
        areas: `[N]`, float64, in square pixels: what decides whether an object is small, medium or large.
        crowds: `[N]`, bool; a crowd is no object to learn from, and to find it is neither right nor wrong.
        annotated: whether the file says which objects there are; it may list images alone, to detect in.
        remarks: a sentence on each kind of value that was read as something else than what is written.
        federated: which classes were looked for in which image; None if all were in all.
    """

    source: Path
    categories: list[CategoryEntry]
    images: ImageTable
    ids: IdColumn
    image_ids: IdColumn
    category_ids: IdColumn
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    annotated: bool = True
    remarks: list[str] = field(default_factory=list)
    federated: Federated | None = None

    @classmethod
    def of_boxes(
        cls,
        source: Path,
        categories: list[CategoryEntry],
        images: Iterable[ImageEntry],
        objects: Sequence[tuple[Id, Id, Sequence[float], bool]],
        remarks: Sequence[str] = (),
    ) -> "Annotations":
        """Annotations of a format that numbers no objects and states no areas: 1, 2, ..., and those of the boxes.

        Args:
            source, categories, images, remarks: as above.
            objects: the image, class, box and whether it is a crowd, of each.
        """
        boxes = np.array([box for _, _, box, _ in objects], dtype=np.float64).reshape(-1, 4)
        with np.errstate(over="ignore", invalid="ignore"):  # of impossible boxes
            areas = boxes[:, 2] * boxes[:, 3]
        return cls(
            source,
            categories,
            ImageTable.of(images),
            IdColumn.of(range(1, len(objects) + 1)),
            IdColumn.of([image for image, _, _, _ in objects]),
            IdColumn.of([category for _, category, _, _ in objects]),
            boxes,
            areas,
            np.array([crowd for _, _, _, crowd in objects], dtype=bool),
            remarks=list(remarks),
        )

    def __post_init__(self) -> None:
        columns = (self.image_ids, self.category_ids, self.boxes, self.areas, self.crowds)
        if any(len(column) != len(self.ids) for column in columns) or self.boxes.shape[1:] != (4,):
            rows = [len(column) for column in columns]
            raise ValueError(f"columns of {rows} rows for {len(self.ids)} objects, boxes {list(self.boxes.shape)}")
        self.boxes, self.areas, self.crowds = shared(self.boxes, self.areas, np.asarray(self.crowds))

    def __setattr__(self, name: str, value: Any) -> None:
        """Lists become columns, whoever sets them; what follows from others is then found anew."""
        for known in ("image_at", "class_at"):
            self.__dict__.pop(known, None)
        object.__setattr__(self, name, COLUMNS[name].of(value) if name in COLUMNS else value)

    @cached_property
    def image_at(self) -> np.ndarray:
        """`[N]`, the image of each object as a position in `images`; -1 for one that the file does not list."""
        return shared(self.image_ids.positions_in(self.images.ids))[0]

    @cached_property
    def class_at(self) -> np.ndarray:
        """`[N]`, the class of each object as a position in `categories`; -1 for one that the file does not list."""
        return shared(self.category_ids.positions_in(IdColumn.of([c.id for c in self.categories])))[0]

    def of_objects(self, rows: np.ndarray) -> "Annotations":
        """The annotations with some of the objects, in their order, and all images."""
        ids, image_ids, category_ids = (c.take(rows) for c in (self.ids, self.image_ids, self.category_ids))
        boxes, areas, crowds = (column[rows] for column in (self.boxes, self.areas, self.crowds))
        return replace(
            self,
            ids=ids,
            image_ids=image_ids,
            category_ids=category_ids,
            boxes=boxes,
            areas=areas,
            crowds=crowds,
        )

    def __len__(self) -> int:
        """How many objects there are, crowds included."""
        return len(self.ids)
