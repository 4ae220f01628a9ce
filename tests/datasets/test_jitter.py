import pytest
import torch

from datasets.jitter import GREY, LargeScaleJitter
from datasets.sizes import resized
from tests.datasets.helpers import extent, of_colour, painted

BOXES, LABELS = [[20, 15, 90, 60], [100, 30, 150, 110]], [1, 4]


def test_boxes_stay_on_the_pixels_at_every_scale():
    jitter, widths = LargeScaleJitter([96, 120], 150), []
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = jitter(*painted(160, 120, BOXES, LABELS))
        assert image.dtype == torch.uint8
        assert tuple(image.shape[1:]) in {resized((120, 160), size, 150) for size in (96, 120)}
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist()):
            width, height = box[2] - box[0], box[3] - box[1]
            if min(width, height) >= 2:  # a sliver is all edge
                assert box == pytest.approx(extent(of_colour(image, label)), abs=1.01)
                widths.append(width / image.shape[2] / ((70, 50)[label == 4] / 160))
    assert min(widths) < 0.2 and max(widths) > 1.7


@pytest.mark.parametrize(("scale", "side"), [(0.1, 10), (0.5, 50), (1.0, 100)])
def test_a_smaller_image_lies_on_grey(monkeypatch, scale, side):
    monkeypatch.setattr("datasets.jitter.SCALES", (scale, scale))
    view = painted(50, 50, [[0, 0, 50, 50]], [2])
    image, target = LargeScaleJitter([100])(*view)
    left, top, right, bottom = (int(v) for v in target["boxes"][0])
    assert right - left == bottom - top == side
    inside = torch.zeros(100, 100, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert of_colour(image, 2)[inside].all()
    assert (image.permute(1, 2, 0)[~inside] == torch.tensor(GREY, dtype=torch.uint8)).all()
    assert GREY == [124, 116, 104]


def test_at_twice_the_size_half_of_each_side_is_seen(monkeypatch):
    monkeypatch.setattr("datasets.jitter.SCALES", (2.0, 2.0))
    jitter = LargeScaleJitter([100])
    image, target = jitter(*painted(60, 60, [[0, 0, 60, 60]], [0]))
    assert image.shape == (3, 100, 100) and of_colour(image, 0).all()
    assert target["boxes"].tolist() == [[0, 0, 100, 100]]
    torch.manual_seed(1)
    crop = jitter.make_params([painted(60, 40, [], [])[0]])["crop"]
    assert (crop["height"], crop["width"], crop["size"]) == (20, 30, [100, 150])


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)])
def test_the_thinnest_image_passes(size):
    jitter = LargeScaleJitter([8], 20)
    for seed in range(10):
        torch.manual_seed(seed)
        image, _ = jitter(*painted(*size, [], []))
        assert tuple(image.shape[1:]) == resized(size[::-1], 8, 20)
