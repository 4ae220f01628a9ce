"""The encoder tokens that a page has room for: evenly spaced on every level, as close as fits."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

Packed = TypeVar("Packed")
_CLOSER = 1.12  # ratio of one spacing to the next that is tried


def tokens_apart(
    spacing: float, size: tuple[int, int], spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor
) -> list[int]:
    """On each level, the tokens of a grid with a line in so many pixels, on unpadded cells; at least one.

    Args:
        spacing: distance in pixels of the picture; levels whose cells are larger give every token.
        size: (width, height) of the picture.
        spatial_shapes: `[(H, W), ...]` of the L levels.
        valid_ratios: `[L, 2]`, unpadded share (x, y) of each level.

    Returns:
        Indices among the S tokens, rising.
    """
    tokens, start = [], 0
    for shape, ratio in zip(spatial_shapes, valid_ratios.tolist()):
        columns, rows = round(ratio[0] * shape[1]), round(ratio[1] * shape[0])
        xs, ys = _lines(columns, spacing * columns / size[0]), _lines(rows, spacing * rows / size[1])
        tokens += [start + y * shape[1] + x for y in ys for x in xs]
        start += shape[0] * shape[1]
    return tokens


def closest_that_fit(
    grid: Callable[[float], list[int]],
    pack: Callable[[list[int]], Packed],
    length: Callable[[Packed], int],
    room: int,
    most: int,
    spacings: tuple[float, float],
) -> tuple[list[int], Packed]:
    """The closest grid of tokens whose packed text is short enough.

    Args:
        grid: spacing in pixels to tokens.
        pack: tokens to what is written about them.
        length: characters of that.
        room: most characters.
        most: most tokens, for the page's memory.
        spacings: smallest and largest spacing to try. The largest is taken if nothing fits.

    Returns:
        The tokens, and what `pack` makes of them.
    """
    spacing, widest = spacings
    few = grid(widest)
    packed = pack(few)
    per_token = length(packed) / len(few)
    while spacing < widest:
        tokens = grid(spacing)
        # A wide grid foretells the length well enough to spare attempts that would fail.
        if len(tokens) <= most and len(tokens) * per_token <= room:
            attempt = pack(tokens)
            if length(attempt) <= room:
                return tokens, attempt
        spacing *= _CLOSER
    return few, packed


def _lines(count: int, step: float) -> range:
    """Every so many of `count` cells, as far from one edge as from the other."""
    whole = min(max(1, round(step)), count)
    return range((count - 1) % whole // 2, count, whole)
