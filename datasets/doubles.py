"""Finds rows that are equal to others, among millions."""

from collections.abc import Sequence

import numpy as np

FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, half of its bits set: it spreads what it multiplies


def rows_alike(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Which rows may be equal to others, as rising positions: every one that is, and hardly any that is not.

    Args:
        columns: `[N]` each, numbers; a row is equal to another if all of them are. 0 and -0 are.
    """
    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        bits = (column.astype(np.float64) + 0.0).view(np.uint64)  # -0 + 0 is 0
        mixed = (mixed ^ bits) * FACTOR
        mixed ^= mixed >> np.uint64(29)
    ordered = np.sort(mixed)
    doubled = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.flatnonzero(np.isin(mixed, doubled)) if len(doubled) else np.zeros(0, dtype=np.int64)
