"""Samples to one padded batch."""

import pytest
import torch

from datasets.batch import collate, collate_step, pad_images
from datasets.dataset import Sample
from util.objects import Objects


def sample(width: int, height: int, image_id: int = 1, objects: int = 1) -> Sample:
    boxes = torch.arange(4 * objects, dtype=torch.float32).reshape(-1, 4)
    truth = Objects(boxes, torch.arange(objects), image_id)
    return Sample(torch.full((3, height, width), float(image_id)), truth, (height, width))


def test_images_are_padded_right_and_below():
    images, mask = pad_images([torch.ones(3, 2, 4), torch.full((3, 3, 1), 2.0)])
    assert images.shape == (2, 3, 3, 4)
    for channel in range(3):
        assert images[0, channel].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
        assert images[1, channel].tolist() == [[2, 0, 0, 0], [2, 0, 0, 0], [2, 0, 0, 0]]
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [
        [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]],
    ]


def test_images_of_one_size_are_not_padded():
    _, mask = pad_images([torch.ones(3, 5, 4)] * 2)
    assert not mask.any()


def test_collate_keeps_every_images_objects():
    batch = collate([sample(4, 2, 7, 2), sample(1, 3, 8, 0)])
    assert [o.image_id for o in batch.objects] == [7, 8]
    assert batch.sizes == [(2, 4), (3, 1)]
    assert batch.objects[0].boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch.objects[0].labels.tolist() == [0, 1]
    assert batch.objects[1].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("count", "limit", "expected"), [(5, 2, [2, 2, 1]), (4, 2, [2, 2]), (3, 8, [3]), (3, 1, [1, 1, 1])]
)
def test_micro_batches_hold_every_sample_once_in_order(count, limit, expected):
    batches = collate_step([sample(3, 3, i) for i in range(count)], limit)
    assert [len(b.images) for b in batches] == expected
    assert [o.image_id for b in batches for o in b.objects] == list(range(count))


def test_micro_batches_are_padded_only_to_their_own_size():
    small, large = collate_step([sample(2, 2), sample(3, 1), sample(9, 8), sample(1, 1)], 2)
    assert small.images.shape == (2, 3, 2, 3)
    assert large.images.shape == (2, 3, 8, 9)
