"""Which images make a batch, in an order that only the seed and the epoch decide."""

from collections import Counter

import pytest
import torch

from datasets.annotations import ImageEntry
from datasets.batch_order import EpochBatches, SameSizeBatches, aspect_groups


def image_of(width: int | None = None, height: int | None = None) -> ImageEntry:
    return ImageEntry(1, "1.png", width, height)


def epoch_of(batches: EpochBatches, epoch: int) -> list[list[tuple[int, int]]]:
    batches.set_epoch(epoch)
    return list(batches)


def test_the_order_is_a_function_of_seed_and_epoch():
    one, two = EpochBatches(20, 4, seed=3), EpochBatches(20, 4, seed=3)
    third = epoch_of(one, 3)
    epoch_of(two, 0)
    torch.manual_seed(99)
    assert epoch_of(two, 3) == third
    assert epoch_of(two, 3) == third
    assert epoch_of(one, 4) != third
    assert epoch_of(EpochBatches(20, 4, seed=4), 3) != third


def test_every_index_comes_once_with_its_epoch():
    keys = [key for batch in epoch_of(EpochBatches(12, 4), 5) for key in batch]
    assert sorted(keys) == [(i, 5) for i in range(12)]


def test_the_incomplete_batch_is_left_out_and_differs_from_epoch_to_epoch():
    batches = EpochBatches(11, 4)
    assert len(batches) == 2
    left_out = Counter()
    for epoch in range(40):
        listed = epoch_of(batches, epoch)
        assert [len(batch) for batch in listed] == [4, 4]
        left_out.update(set(range(11)) - {index for batch in listed for index, _ in batch})
    assert set(left_out) == set(range(11))


def test_fewer_samples_than_a_batch_make_one_batch():
    batches = EpochBatches(3, 16)
    assert len(batches) == 1
    assert sorted(epoch_of(batches, 0)[0]) == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(("batch_size", "processes"), [(8, 1), (8, 2), (8, 3), (7, 4), (5, 5)])
def test_processes_share_every_batch(batch_size, processes):
    whole = epoch_of(EpochBatches(50, batch_size, seed=1), 2)
    parts = [epoch_of(EpochBatches(50, batch_size, seed=1, share=(r, processes)), 2) for r in range(processes)]
    assert [[key for part in parts for key in part[i]] for i in range(len(whole))] == whole
    sizes = [len(part[0]) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_pass_can_start_at_any_batch():
    batches = EpochBatches(20, 4, seed=1)
    whole = epoch_of(batches, 1)
    batches.set_epoch(1, first=3)
    assert list(batches) == whole[3:]
    assert epoch_of(batches, 1) == whole


def test_batches_of_one_aspect():
    images = [image_of(30 + 20 * (i % 3 == 0), 40) for i in range(100)]
    groups = aspect_groups(images)
    assert sum(groups) == 66
    batches = EpochBatches(100, 8, seed=0, groups=groups)
    for epoch in range(5):
        listed = epoch_of(batches, epoch)
        assert len(listed) == len(batches) == 12
        indices = [index for batch in listed for index, _ in batch]
        assert len(set(indices)) == 96
        mixed = [batch for batch in listed if len({groups[index] for index, _ in batch}) == 2]
        assert len(mixed) <= 1
    assert epoch_of(batches, 0) != epoch_of(batches, 1)
    # Also of few high images all are seen.
    few = EpochBatches(10, 5, seed=0, groups=[1, 1] + [0] * 8)
    assert {index for epoch in range(9) for batch in epoch_of(few, epoch) for index, _ in batch} == set(range(10))


def test_images_of_unknown_size_are_taken_for_wide():
    assert aspect_groups([image_of(), image_of(2, 1), image_of(1, 2)]) == [0, 0, 1]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_evaluation_is_dealt_out_without_doubles(processes):
    images = [image_of(8 + i % 3, 8) for i in range(11)]
    whole = SameSizeBatches(images, 2).batches
    parts = [SameSizeBatches(images, 2, (rank, processes)).batches for rank in range(processes)]
    dealt = [batch for part in parts for batch in part]
    assert sorted(map(tuple, dealt)) == sorted(map(tuple, whole))
    assert sorted(index for batch in dealt for index in batch) == list(range(11))
    limited = [SameSizeBatches(images, 2, (rank, processes), limit=2).batches for rank in range(processes)]
    assert sorted(tuple(batch) for part in limited for batch in part) == sorted(map(tuple, whole[:2]))


def test_pairs_stay_pairs_for_every_number_of_processes_with_even_shares():
    """What is padded together must not depend on processes, where `train.padding` is `micro_batch`."""

    def pairs(processes: int) -> list[set[tuple]]:
        steps = [list(EpochBatches(100, 32, seed=3, share=(rank, processes))) for rank in range(processes)]
        return [
            {tuple(share[i : i + 2]) for share in shares for i in range(0, len(share), 2)} for shares in zip(*steps)
        ]

    for processes in (2, 4, 8, 16):
        assert pairs(processes) == pairs(1)
    assert pairs(3) != pairs(1)
