"""Which detections count where an image was not searched for all classes: LVIS's rules (arXiv 1908.03195, section 2.2).

A class counts in an image that has objects of it, or in which it was looked for and not found (a negative). Detections
of all other classes are left out: nothing is known of them. Where more objects of a class are there than are listed,
a detection of it that finds none is neither right nor wrong. The limit of detections is that of an image, of all
classes together, and is applied first.
"""

from collections.abc import Sequence

import numpy as np

from datasets.annotations import CategoryEntry, Federated
from datasets.class_lists import ClassLists
from datasets.id_column import IdColumn
from datasets.image_table import ImageTable


def best_of_images(images: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """`[N]`, whether a detection is among the best of its image; of equal scores the first are.

    Args:
        images: `[N]`, position of the image of each detection.
        scores: `[N]`.
        limit: most detections of an image.
    """
    order = np.lexsort((-scores, images))
    ordered = images[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    best = np.empty(len(order), dtype=bool)
    best[order] = rank < limit
    return best


class LookedFor:
    """Which classes were looked for in which image, by their positions.

    Args:
        federated: what the file says.
        images: the images that positions are of, such as those that are scored.
        categories: the classes that positions are of.
    """

    def __init__(self, federated: Federated, images: ImageTable, categories: Sequence[CategoryEntry]):
        self.num_classes = len(categories)
        self.ids = images.ids, IdColumn.of([category.id for category in categories])
        self.negatives = self._pairs(federated.negatives)
        self.not_exhaustive = self._pairs(federated.not_exhaustive)
        known = federated.frequencies
        self.frequencies = np.array([known.get(category.id, "") for category in categories])

    def pairs(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """`[N]`, a number for each pair of an image and a class."""
        return images * self.num_classes + classes

    def counted(self, pairs: np.ndarray, of_objects: np.ndarray) -> np.ndarray:
        """`[N]`, whether the class of a pair was looked for in its image, given the pairs of the objects."""
        return np.isin(pairs, np.concatenate([self.negatives, of_objects]))

    def incomplete(self, pairs: np.ndarray) -> np.ndarray:
        """`[N]`, whether the image of a pair has more objects of its class than are listed."""
        return np.isin(pairs, self.not_exhaustive)

    def _pairs(self, lists: ClassLists) -> np.ndarray:
        return self.pairs(*lists.pairs_in(*self.ids))
