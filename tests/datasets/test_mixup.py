import pytest
import torch
from torchvision import tv_tensors

from datasets.mixup import blend, mixup
from tests.datasets.helpers import extent, painted


def grey(value: int, height: int, width: int, boxes: list, labels: list[int]) -> tuple:
    _, target = painted(width, height, boxes, labels)
    return tv_tensors.Image(torch.full((3, height, width), value, dtype=torch.uint8)), target


def test_a_blend_by_hand():
    view, partner = grey(201, 3, 4, [[0, 0, 2, 2]], [5]), grey(10, 2, 2, [[0.5, 1, 2, 2]], [3])
    image, target = blend(view, partner, 0.45, top=1, left=2)  # 0.45 * 201 + 0.55 * 10 = 95.95
    assert image.dtype == torch.uint8
    for channel in image.tolist():
        assert channel == [[201, 201, 201, 201], [201, 201, 96, 96], [201, 201, 96, 96]]
    assert target["boxes"].tolist() == [[0, 0, 2, 2], [2.5, 2, 4, 3]]
    assert target["labels"].tolist() == [5, 3]
    assert target["boxes"].canvas_size == (3, 4)
    assert view[0].eq(201).all()  # which is somebody else's


def test_boxes_of_both_are_those_of_the_pixels():
    view, shares, places = painted(100, 70, [[10, 20, 60, 50]], [0]), set(), set()
    for seed in range(40):
        partner = painted(*((90, 60), (60, 140), (300, 100), (20, 20))[seed % 4], [[5, 5, 18, 15]], [1])
        torch.manual_seed(seed)
        image, target = mixup(view, partner)
        assert image.shape == (3, 70, 100)
        assert target["labels"].tolist() == [0, 1]
        red, green = image[0] > 64, image[1] > 64  # a half of each colour's half
        assert target["boxes"][0].tolist() == extent(red) == [10, 20, 60, 50]
        assert target["boxes"][1].tolist() == pytest.approx(extent(green), abs=1.01)
        shares.add(int(image[1].max()))
        places.add(tuple(target["boxes"][1, :2].tolist()))
    assert 0.45 * 255 - 1 <= min(shares) < 122 and 133 < max(shares) <= 0.55 * 255 + 1
    assert len(places) > 20


def test_a_partner_that_fits_keeps_its_size():
    _, target = mixup(painted(50, 40, [], []), painted(40, 40, [[0, 0, 40, 40]], [2]))
    left, top, right, bottom = target["boxes"][0].tolist()
    assert (right - left, top, bottom) == (40, 0, 40)


def test_images_without_objects():
    empty = painted(30, 20, [], [])
    _, target = mixup(empty, empty)
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert mixup(empty, painted(3000, 1, [], []))[0].shape == (3, 20, 30)
