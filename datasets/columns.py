"""What an evaluation compares, in columns: the objects of the scored images, and what was found in them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from datasets.annotations import Annotations, CategoryEntry, Id, ImageEntry
from datasets.ids import id_order
from datasets.results import Results
from datasets.truth import possible_objects

LARGEST_AREA = 1e10  # of an object in square pixels: COCO's sizes end here, and a larger one would not count


@dataclass
class Boxes:
    """Boxes in the order of their file; a row of each column is one.

    Attributes:
        images: `[N]`, its image, as a position in `Columns.images`.
        classes: `[N]`, its class, as a position in `Columns.categories`.
        boxes: `[N, 4]`, float64, [x, y, width, height] in pixels.
        areas: `[N]`, float64, in square pixels.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        """How many there are."""
        return len(self.images)


@dataclass
class Columns:
    """Objects and detections of the scored images.

    Attributes:
        images: the scored images, in the order of their ids.
        categories: the classes of the file, in the order of their ids.
        truth: objects and crowds that can be found.
        crowds: `[T]`, which of them are crowds.
        found: detections of these classes.
        scores: `[D]`, float64.
    """

    images: list[ImageEntry]
    categories: list[CategoryEntry]
    truth: Boxes
    crowds: np.ndarray
    found: Boxes
    scores: np.ndarray


def to_columns(annotations: Annotations, results: Results, image_ids: Iterable[Id] | None = None) -> Columns:
    """Objects and detections side by side, without what is no object and without classes that the file does not list.

    Args:
        annotations: the truth.
        results: what was found in its images.
        image_ids: the images to score; None takes all.
    """
    entry_of = {image.id: image for image in annotations.images}
    chosen = entry_of if image_ids is None else set(image_ids)
    images = [entry_of[i] for i in sorted(chosen, key=id_order)]
    categories = sorted(annotations.categories, key=lambda category: id_order(category.id))
    image_at = {image.id: i for i, image in enumerate(images)}
    class_at = {category.id: k for k, category in enumerate(categories)}

    def places(of_images: list[Id], of_classes: list[Id]) -> np.ndarray:
        """`[N, 2]`, image and class of each row; -1 for one that is not scored."""
        rows = [(image_at.get(i, -1), class_at.get(c, -1)) for i, c in zip(of_images, of_classes)]
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    def boxes_at(rows: np.ndarray, at: np.ndarray, boxes: np.ndarray, areas: np.ndarray) -> Boxes:
        return Boxes(at[rows, 0], at[rows, 1], boxes[rows], np.minimum(areas[rows], LARGEST_AREA))

    at = places(annotations.image_ids, annotations.category_ids)
    objects = possible_objects(annotations) & np.all(at >= 0, axis=1)
    truth = boxes_at(objects, at, annotations.boxes, annotations.areas)
    at = places(results.image_ids, results.category_ids)
    listed: np.ndarray = np.all(at >= 0, axis=1)
    with np.errstate(over="ignore"):
        areas = results.boxes[:, 2] * results.boxes[:, 3]
    found = boxes_at(listed, at, results.boxes, areas)
    return Columns(images, categories, truth, annotations.crowds[objects], found, results.scores[listed])
