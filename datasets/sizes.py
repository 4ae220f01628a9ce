"""The size that a picture is resized to, in whole pixels. Whoever resizes asks here, so that all round alike."""


def resized(picture: tuple[int, int], size: int, max_size: int | None = None) -> tuple[int, int]:
    """Height and width of a picture whose shorter side is brought to `size`.

    The published detectors were trained and evaluated so (the rule of arXiv 2005.12872): the shorter side is exactly
    `size`, and the longer one follows from it, rounded down. Where the longer one would exceed `max_size`, the shorter
    one is lowered first, to the nearest whole number, and the longer one again follows from it: so it may exceed
    `max_size` a little, by half the ratio of the sides at most.

    Args:
        picture: (height, width) in pixels.
        size: shorter side in pixels.
        max_size: bound of the longer side; None is none.

    Returns:
        (height, width), no side below a pixel.
    """
    short, long = min(picture), max(picture)
    if max_size is not None and long / short * size > max_size:
        # Of a strip not even a pixel may be left; what follows from one would then far exceed the bound.
        size = round(max_size * short / long)
        new = (size, size * long // short) if size else (1, max_size)
    else:
        new = (size, size * long // short)
    return new if picture[0] <= picture[1] else new[::-1]
