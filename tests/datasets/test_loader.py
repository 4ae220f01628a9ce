import pytest

from datasets.annotations import ImageEntry
from datasets.batch_order import NeighbourBatches
from datasets.dataset import CocoDetection
from datasets.loader import eval_loader, train_loader
from datasets.transforms import eval_transform
from tests.datasets.helpers import annotation, write_coco
from tests.datasets.test_batch_order import epoch_of
from util.errors import UserError


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
