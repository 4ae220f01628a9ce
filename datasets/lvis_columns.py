"""LVIS's lists of images gathered in columns, a part of the images at a time."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from datasets.annotations import Federated, Id
from datasets.class_lists import ClassLists
from datasets.id_column import IdColumn
from datasets.lvis import frequencies_of, remark_on_lists


class ListColumns:
    """The two lists of images, as far as they have been read.

    Attributes:
        stated: how many images have both.
        counts, classes: of each of the two, arrays of how many classes it has for each image, and of their ids.
    """

    def __init__(self) -> None:
        self.stated = 0
        self.counts: list[list[np.ndarray]] = [[], []]
        self.classes: list[list[np.ndarray]] = [[], []]

    def add(self, negatives: Sequence[list[int] | None], not_exhaustive: Sequence[list[int] | None]) -> None:
        """The lists of some more images; None where an image has none."""
        both = negatives, not_exhaustive
        self.stated += sum(a is not None and b is not None for a, b in zip(*both))
        for counts, classes, column in zip(self.counts, self.classes, both):
            counts.append(np.fromiter((len(listed or ()) for listed in column), np.int64, len(column)))
            classes.append(np.fromiter(chain.from_iterable(filter(None, column)), np.int64, counts[-1].sum()))

    def federated(
        self, images: IdColumn, frequencies: Sequence[tuple[Id, str | None]], source: Path
    ) -> tuple[Federated | None, list[str]]:
        """As `datasets.lvis.federated_of`, where all ids are whole numbers, so that none stands for another.

        Args:
            images: ids of all images.
            frequencies: id and frequency of each class.
            source: the file, for remarks.
        """
        if self.stated < len(images):
            return None, [remark_on_lists(self.stated, len(images), source)] if self.stated else []
        known, remarks = frequencies_of(frequencies, source)
        negatives, partly = (_lists(images, *map(np.concatenate, of)) for of in zip(self.counts, self.classes))
        return Federated(negatives, partly, known), remarks


def _lists(images: IdColumn, counts: np.ndarray, classes: np.ndarray) -> ClassLists:
    return ClassLists(images.take(np.flatnonzero(counts)), counts[counts > 0], IdColumn(classes))
