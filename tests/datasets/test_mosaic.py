import pytest
import torch

from datasets.mosaic import mosaic
from tests.datasets.helpers import extent, of_colour, painted

SIZES = [(160, 120), (120, 160), (90, 90), (400, 200)]


def four() -> list:
    """One rectangle in each, a third of the sides long."""
    return [
        painted(w, h, [[w // 4, h // 4, w // 4 + w // 3, h // 4 + h // 3]], [label])
        for label, (w, h) in enumerate(SIZES)
    ]


def test_boxes_are_those_of_the_pixels_and_each_in_its_quarter():
    scales, places = [], set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = mosaic(four(), (96, 128))
        assert image.shape == (3, 96, 128) and image.dtype == torch.uint8
        places.add(tuple(target["labels"].tolist()))
        for label in range(4):
            pixels = of_colour(image, label)
            if label not in target["labels"]:
                assert pixels.sum() < 0.25 * 96 * 128 * 0.65**2 / 9  # only of what was cut nearly off
                continue
            (box,) = target["boxes"][target["labels"] == label].tolist()
            assert box == pytest.approx(extent(pixels), abs=1.01)
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            assert (x > 0.35 * 128 if label % 2 else x < 0.65 * 128) and (y > 0.35 * 96 if label > 1 else y < 0.65 * 96)
            if label == 0:
                scales.append((box[2] - box[0]) / (128 / 160 * 53))
    assert 0.3 < min(scales) < 0.45 and 0.6 < max(scales) < 0.7  # about half as large
    assert (0, 1, 2, 3) in places


def test_the_canvas_is_filled():
    views = [painted(w, h, [[0, 0, w, h]], [label]) for label, (w, h) in enumerate(SIZES)]
    for seed in range(10):
        torch.manual_seed(seed)
        image, target = mosaic(views, (50, 70))
        assert sum(of_colour(image, label).int() for label in range(4)).eq(1).all()
        boxes = target["boxes"].tolist()
        x, y = boxes[0][2:]
        quarters = [[0, 0, x, y], [x, 0, 70, y], [0, y, x, 50], [x, y, 70, 50]]
        assert boxes == [pytest.approx(quarter, abs=1e-4) for quarter in quarters]
        assert 24 <= x <= 46 and 17 <= y <= 33


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_the_smallest_canvas_and_the_thinnest_images_pass(size):
    views = [
        painted(1, 5000, [], []),
        painted(5000, 1, [], []),
        painted(1, 1, [], []),
        painted(9, 9, [[0, 0, 9, 9]], [1]),
    ]
    for seed in range(10):
        torch.manual_seed(seed)
        image, target = mosaic(views, size)
        assert tuple(image.shape[1:]) == size
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()


def test_images_without_objects():
    _, target = mosaic([painted(30, 20, [], [])] * 4, (20, 30))
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
