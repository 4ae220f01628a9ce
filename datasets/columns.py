"""What an evaluation compares, in columns: the objects of the scored images, and what was found in them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from datasets.annotations import Annotations, CategoryEntry, Id
from datasets.federated import LookedFor, best_of_images
from datasets.id_column import IdColumn
from datasets.ids import id_order
from datasets.image_table import ImageTable
from datasets.protocol import COCO, LVIS, MAX_DETECTIONS
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
        protocol: whose rules they are scored by, one of `datasets.protocol`.
        neutral: `[D]`, whether a detection that finds nothing is not wrong; None if none is.
        frequencies: `[C]`, how frequent each class is, `r`, `c`, `f` or ""; None if the file does not say.
    """

    images: ImageTable
    categories: list[CategoryEntry]
    truth: Boxes
    crowds: np.ndarray
    found: Boxes
    scores: np.ndarray
    protocol: str = COCO
    neutral: np.ndarray | None = None
    frequencies: np.ndarray | None = None


def to_columns(
    annotations: Annotations,
    results: Results,
    image_ids: Iterable[Id] | None = None,
    protocol: str = COCO,
    max_detections: int = MAX_DETECTIONS[COCO],
) -> Columns:
    """Objects and detections side by side, without what is no object and without classes that the file does not list.

    Args:
        annotations: the truth; by LVIS's protocol it says which classes were looked for in which image.
        results: what was found in its images.
        image_ids: the images to score; None takes all.
        protocol: whose rules they will be scored by.
        max_detections: of an image, all classes together; only LVIS's protocol leaves the others out here.
    """
    listed_ids = annotations.images.ids
    chosen = listed_ids if image_ids is None else IdColumn.of(dict.fromkeys(image_ids))
    in_order = sorted(zip(chosen, chosen.positions_in(listed_ids).tolist()), key=lambda pair: id_order(pair[0]))
    images = annotations.images.take(np.array([row for _, row in in_order], dtype=np.int64))
    categories = sorted(annotations.categories, key=lambda category: id_order(category.id))
    class_ids = IdColumn.of([category.id for category in categories])

    def places(of_images: IdColumn, of_classes: IdColumn) -> np.ndarray:
        """`[N, 2]`, image and class of each row; -1 for one that is not scored."""
        at = of_images.positions_in(images.ids), of_classes.positions_in(class_ids)
        return np.stack(at, 1).astype(np.int64)

    def boxes_at(rows: np.ndarray, at: np.ndarray, boxes: np.ndarray, areas: np.ndarray) -> Boxes:
        return Boxes(at[rows, 0], at[rows, 1], boxes[rows], np.minimum(areas[rows], LARGEST_AREA))

    at = places(annotations.image_ids, annotations.category_ids)
    objects = possible_objects(annotations) & np.all(at >= 0, axis=1)
    truth = boxes_at(objects, at, annotations.boxes, annotations.areas)
    at = places(IdColumn.of(results.image_ids), IdColumn.of(results.category_ids))
    listed: np.ndarray = np.all(at >= 0, axis=1)
    neutral = frequencies = None
    if protocol == LVIS and annotations.federated is not None:
        looked_for = LookedFor(annotations.federated, images, categories)
        pairs = looked_for.pairs(at[:, 0], at[:, 1])
        listed &= best_of_images(at[:, 0], results.scores, max_detections)
        listed &= looked_for.counted(pairs, looked_for.pairs(truth.images, truth.classes))
        neutral, frequencies = looked_for.incomplete(pairs[listed]), looked_for.frequencies
    with np.errstate(over="ignore"):
        areas = results.boxes[:, 2] * results.boxes[:, 3]
    found = boxes_at(listed, at, results.boxes, areas)
    crowds, scores = annotations.crowds[objects], results.scores[listed]
    return Columns(images, categories, truth, crowds, found, scores, protocol, neutral, frequencies)
