"""What the annotation file of a data set says, whatever its format: classes, images and objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

Id: TypeAlias = int | float | str  # a whole number (also written 7.0), or text, as some tools have it


@dataclass(frozen=True, slots=True)
class CategoryEntry:
    """A class as the file lists it."""

    id: Id
    name: str


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as the file lists it: a file name in the image folder; width and height in pixels, if they are said."""

    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None if the file does not say both."""
        return None if self.width is None or self.height is None else (self.width, self.height)


@dataclass(frozen=True)
class Federated:
    """Which classes were looked for in which image, for a file whose images are not searched for all classes (LVIS).

    A class that an image has objects of was looked for; of all others, beside these, nothing is known.

    Attributes:
        negatives: ids of the classes that were looked for in an image and are not there, by the image's id.
        not_exhaustive: ids of the classes of which an image has more objects than are listed, by the image's id.
        frequencies: of each class, by its id: `r`, `c` or `f` (rare, common, frequent); empty if the file does not say.
    """

    negatives: Mapping[Id, tuple[Id, ...]]
    not_exhaustive: Mapping[Id, tuple[Id, ...]]
    frequencies: Mapping[Id, str] = field(default_factory=dict)


@dataclass
class Annotations:
    """A whole annotation file. Objects lie in columns: a row of each column is one object.

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
    images: list[ImageEntry]
    ids: list[Id]
    image_ids: list[Id]
    category_ids: list[Id]
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    annotated: bool = True
    remarks: list[str] = field(default_factory=list)
    federated: Federated | None = None

    def __post_init__(self) -> None:
        columns = (self.image_ids, self.category_ids, self.boxes, self.areas, self.crowds)
        if any(len(column) != len(self.ids) for column in columns) or self.boxes.shape[1:] != (4,):
            rows = [len(column) for column in columns]
            raise ValueError(f"columns of {rows} rows for {len(self.ids)} objects, boxes {list(self.boxes.shape)}")

    def __len__(self) -> int:
        """How many objects there are, crowds included."""
        return len(self.ids)
