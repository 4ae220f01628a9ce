import math

import numpy as np
import pytest

from datasets.frames import Rotated, frames_of

RAW, UPRIGHT = (480, 640), (640, 480)
EITHER, ONLY_UPRIGHT, ONLY_RAW = [10, 10, 100, 100], [500, 10, 100, 100], [10, 500, 100, 100]


def rotated(stated, *boxes, raw=RAW, upright=UPRIGHT) -> Rotated:
    return Rotated(raw, upright, stated, np.array(boxes, dtype=np.float64).reshape(-1, 4))


def square(*boxes) -> Rotated:
    return rotated((500, 500), *boxes, raw=(500, 500), upright=(500, 500))


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        # The size is the raw one: a box tells, of its image and of the set; otherwise the size is a guess.
        ([rotated(RAW, EITHER)], [("raw", True)]),
        ([rotated(RAW)], [("raw", True)]),
        ([rotated(RAW, EITHER, ONLY_UPRIGHT)], [("upright", False)]),
        ([rotated(RAW, EITHER, ONLY_RAW)], [("raw", False)]),
        ([rotated(RAW, EITHER), rotated(RAW, ONLY_UPRIGHT)], [("upright", False)] * 2),
        ([rotated(RAW, EITHER), rotated(RAW, ONLY_RAW)], [("raw", False)] * 2),
        (
            [rotated(RAW, EITHER), rotated(RAW, ONLY_RAW), rotated(RAW, ONLY_UPRIGHT)],
            [("raw", True), ("raw", False), ("upright", False)],
        ),
        # One careless box among ten pictures does not turn them.
        ([rotated(RAW, ONLY_RAW)] * 9 + [rotated(RAW, ONLY_UPRIGHT)], [("raw", False)] * 10),
        # The size is the upright one, which only boxes far outside gainsay.
        ([rotated(UPRIGHT, EITHER)], [("upright", False)]),
        ([rotated(UPRIGHT, [10, 400, 50, 90])], [("upright", False)]),
        ([rotated(UPRIGHT, ONLY_RAW)], [("raw", False)]),
        ([rotated(UPRIGHT, EITHER), rotated(RAW, EITHER)], [("upright", False), ("raw", True)]),
        # No size, or the same either way: as the others, else upright.
        ([rotated(None, EITHER)], [("upright", True)]),
        ([rotated(None, ONLY_RAW)], [("raw", False)]),
        ([square(EITHER)], [("upright", True)]),
        ([square(EITHER), rotated(UPRIGHT, EITHER)], [("upright", False)] * 2),
        ([square(EITHER), rotated(RAW, EITHER)], [("raw", True)] * 2),
        ([square(EITHER), rotated(RAW, ONLY_UPRIGHT)], [("upright", False)] * 2),
        ([square(EITHER), rotated(RAW, ONLY_RAW)], [("raw", False)] * 2),
        # Boxes that are none tell nothing; a pixel is rounding.
        ([rotated(RAW, [500, 10, -5, 10], [math.nan, 0, 1, 1], [600, 0, math.inf, 1])], [("raw", True)]),
        ([rotated(RAW, [0, 0, 481, 10])], [("raw", True)]),
        ([rotated(RAW, [0, 0, 482, 10])], [("upright", False)]),
        ([], []),
    ],
)
def test_sizes_and_boxes_tell_the_frame(pictures, expected):
    assert frames_of(pictures, "auto") == expected


@pytest.mark.parametrize("exif", ["upright", "raw"])
def test_the_option_decides(exif):
    pictures = [rotated(RAW, ONLY_UPRIGHT), rotated(RAW, ONLY_RAW), rotated(UPRIGHT), square()]
    assert frames_of(pictures, exif) == [(exif, False)] * 4
