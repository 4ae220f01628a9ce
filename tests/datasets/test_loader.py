from collections import Counter

import pytest
import torch

from datasets.annotations import ImageEntry
from datasets.batch import collate, collate_step, pad_images
from datasets.batch_order import EpochBatches, NeighbourBatches, SameSizeBatches, aspect_groups
from datasets.dataset import CocoDetection, Sample
from datasets.loader import eval_loader, train_loader
from datasets.transforms import eval_transform
from tests.datasets.helpers import annotation, write_coco
from util.errors import UserError
from util.objects import Objects


def sample(width: int, height: int, image_id: int = 1, objects: int = 1) -> Sample:
    boxes = torch.arange(4 * objects, dtype=torch.float32).reshape(-1, 4)
    truth = Objects(boxes, torch.arange(objects), image_id)
    return Sample(torch.full((3, height, width), float(image_id)), truth, (height, width))


def image_of(width: int | None = None, height: int | None = None) -> ImageEntry:
    return ImageEntry(1, "1.png", width, height)


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


def test_the_epoch_reaches_workers_that_stay(tmp_path):
    dataset = CocoDetection.from_file(*write_coco(tmp_path, [], sizes=((8, 8),) * 6))
    loader = train_loader(dataset, 2, 1, 1, seed=0, pin_memory=False)
    orders = []
    for epoch in (0, 1, 0):
        loader.batches.set_epoch(epoch)
        steps = list(loader)
        assert [[len(b.images) for b in step] for step in steps] == [[1, 1]] * 3
        orders.append([o.image_id for step in steps for b in step for o in b.objects])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == [1, 2, 3, 4, 5, 6]


def test_a_pass_that_is_cut_short_does_not_spoil_the_next(tmp_path):
    dataset = CocoDetection.from_file(*write_coco(tmp_path, [], sizes=((8, 8),) * 6))
    loader = train_loader(dataset, 2, None, 1, seed=0, pin_memory=False)
    for _ in loader:
        break
    assert len(list(loader)) == 3


def test_the_whole_batch_is_one_micro_batch_unless_limited(tmp_path):
    dataset = CocoDetection.from_file(*write_coco(tmp_path, [], sizes=((8, 8),) * 4))
    (step,) = train_loader(dataset, 4, None, 0, seed=0, pin_memory=False)
    assert [len(b.images) for b in step] == [4]


def test_evaluation_yields_every_image_once_without_padding(tmp_path):
    objects = [annotation(1, 2, 1, [0, 0, 4, 4])]
    paths = write_coco(tmp_path, objects, sizes=((8, 8), (16, 8), (8, 8), (8, 8), (8, 8)))
    loader = eval_loader(CocoDetection.from_file(*paths, eval_transform(8, 16)), 2, 0, pin_memory=False)
    batches = list(loader)
    assert [[o.image_id for o in b.objects] for b in batches] == [[1, 3], [4, 5], [2]]  # by size
    assert [len(o.labels) for o in batches[2].objects] == [1]
    assert not any(b.padding_mask.any() for b in batches)
    assert len(loader) == 3


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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_that_starts_later_reads_no_image_before(tmp_path, workers):
    """The files of the images before are gone; their reading would fail."""
    folder, annotations = write_coco(tmp_path, [], sizes=((8, 8),) * 12)
    dataset = CocoDetection.from_file(folder, annotations)
    loader = train_loader(dataset, 3, None, workers, seed=0, pin_memory=False)
    order = [[index for index, _ in batch] for batch in epoch_of(loader.batches, 5)]
    for index in order[0] + order[1]:
        (folder / dataset.images[index].file_name).unlink()
    loader.batches.set_epoch(5, first=2)
    seen = [o.image_id for (batch,) in loader for o in batch.objects]
    assert seen == [dataset.images[index].id for index in order[2] + order[3]]
    loader.batches.set_epoch(5, first=1)
    with pytest.raises(UserError):
        list(loader)


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


def test_padded_evaluation_pairs_neighbours_by_id(tmp_path):
    images = [ImageEntry(number, f"{number}.png", 8 + number, 8) for number in (30, 4, 200, 11, 5)]
    assert NeighbourBatches(images, 2).batches == [[1, 4], [3, 0], [2]]  # ids 4 and 5, 11 and 30, 200
    parts = [NeighbourBatches(images, 2, (rank, 2)).batches for rank in range(2)]
    assert parts == [[[1, 4], [2]], [[3, 0]]]
    mixed = [ImageEntry(number, "x.png") for number in ("b", 3, "a", 2.5)]
    assert NeighbourBatches(mixed, 4).batches == [[3, 1, 2, 0]]

    paths = write_coco(tmp_path, [], sizes=((8, 8), (16, 8), (8, 12)))
    dataset = CocoDetection.from_file(*paths, eval_transform(8, 16))
    batches = list(eval_loader(dataset, 2, 0, pin_memory=False, padding="batch"))
    assert [[o.image_id for o in b.objects] for b in batches] == [[1, 2], [3]]
    assert batches[0].padding_mask[0, :, 8:].all() and not batches[0].padding_mask[:, :, :8].any()


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
