import pytest
import torch

from datasets.visible import VISIBLE, crop_visible
from tests.datasets.helpers import painted


@pytest.mark.parametrize(
    ("left", "kept"),
    [(10, [10.0, 5.0]), (15, [5.0, 5.0]), (18, [2.0, 5.0]), (19, None), (20, None)],  # of the box from 10 to 20
)
def test_an_object_stays_if_a_fifth_of_it_is_in_the_rectangle(left, kept):
    assert VISIBLE == 0.2
    image, target = crop_visible(painted(40, 30, [[10, 5, 20, 10]], [3]), 0, left, 30, 15)
    assert image.shape == (3, 30, 15)
    assert target["labels"].tolist() == ([3] if kept else [])
    sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).tolist()
    assert sides == ([kept] if kept else [])


def test_boxes_are_clipped_and_shifted():
    _, target = crop_visible(painted(40, 30, [[2, 4, 30, 28], [12, 8, 14, 9.5]], [0, 1]), 6, 10, 20, 15)
    assert target["boxes"].tolist() == [[0, 0, 15, 20], [2, 2, 4, 3.5]]
    assert target["boxes"].canvas_size == (20, 15)
    assert target["boxes"].dtype == torch.float32
