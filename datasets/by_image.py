"""Rows of the objects of all images, those of one image together."""

from collections.abc import Iterator, Sequence

import numpy as np

from util.shared import SharesArrays, shared


class ByImage(SharesArrays, Sequence[np.ndarray]):
    """A sequence of an array for each image, kept in one.

    Args:
        rows: `[N, ...]`, of all objects.
        positions: `[N]`, the image of each.
        count: number of images.
    """

    def __init__(self, rows: np.ndarray, positions: np.ndarray, count: int):
        if np.any(positions[1:] < positions[:-1]):
            rows = rows[np.argsort(positions, kind="stable")]
        ends = np.append(0, np.cumsum(np.bincount(positions, minlength=count)))
        self.rows, self.ends = shared(rows, ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, image):  # type: ignore[no-untyped-def]  # an array, or a list of them
        if isinstance(image, slice):
            return [self[i] for i in range(len(self))[image]]
        image = range(len(self))[image]
        return self.rows[self.ends[image] : self.ends[image + 1]].copy()  # what is shared cannot be written to

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @property
    def counts(self) -> np.ndarray:
        """`[I]`, how many rows each image has."""
        return np.diff(self.ends)
