"""Strong augmentations of whole samples: when there are any, whose images are in them, and what they leave alone."""

import pytest
import torch

from datasets.dataset import CocoDetection
from datasets.loader import train_loader
from datasets.picture_file import BrokenImage
from datasets.sizes import resized
from datasets.splits import build_dataset, strong_epochs
from datasets.strong import StrongTransform, happens, images_in_one
from datasets.transforms import train_transform
from tests.datasets.helpers import annotation, painted, write_coco
from util.config import DataConfig

KINDS = ("mosaic", "mixup", "large_scale_jitter", "copy_paste")
SIZES = ((40, 30), (30, 40), (36, 36), (60, 30), (44, 30), (30, 50))


@pytest.fixture
def build(tmp_path):
    """A data set of six images, of which the last has no objects."""
    objects = [annotation(i, 1 + i % 5, 1 + i % 2, [2 * i, i, 12, 10]) for i in range(10)]
    images, file = write_coco(tmp_path, objects, SIZES)

    def made(seed: int = 5, epochs: int = 4, **options) -> CocoDetection:
        data = DataConfig(train_images=str(images), train_annotations=str(file), train_sizes=[24, 28, 32], max_size=48)
        data.crop, data.color_jitter = False, 0.2
        for name, value in options.items():
            assert hasattr(data, name)
            setattr(data, name, value)
        return build_dataset(data, "train", seed, epochs)

    return made


def content(dataset: CocoDetection, epoch: int) -> list[tuple]:
    samples = [dataset[i, epoch] for i in range(len(dataset))]
    return [(s.image.tolist(), s.objects.boxes.tolist(), s.objects.labels.tolist(), s.original_size) for s in samples]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_there_in_the_first_epochs_alone(build, kind):
    plain, strong = build(), build(**{kind: 1.0})
    for epoch in (0, 1):
        changed = [a != b for a, b in zip(content(plain, epoch), content(strong, epoch))]
        assert any(changed) if kind == "copy_paste" else all(changed)  # now and then no object is drawn to be pasted
    for epoch in (2, 3):
        assert content(plain, epoch) == content(strong, epoch)
    assert content(build(**{kind: 1.0}, strong_until=0.0), 0) == content(plain, 0)
    assert content(build(**{kind: 1.0}, strong_until=1.0), 3) != content(plain, 3)


def test_another_transform_is_that_of_all_epochs(build):
    """As evaluation of training images needs it: they are then as they are, also in the strong epochs."""
    ordinary = build().transform
    assert content(build(mosaic=1.0).transformed(ordinary), 0) == content(build(), 0)


@pytest.mark.parametrize(
    ("until", "epochs", "expected"),
    [(0.5, 50, 25), (0.5, 3, 2), (0.5, 1, 1), (0.07, 100, 7), (0.29, 100, 29), (0.0, 9, 0), (1.0, 7, 7), (0.5, 0, 0)],
)
def test_epochs_that_begin_before_the_share_is_over(until, epochs, expected):
    assert strong_epochs(until, epochs) == expected


def test_with_none_of_them_nothing_more_is_drawn(build):
    assert build().strong is None
    ordinary = train_transform([24, 28], 48, True, [24, 30], [16, 28], 0.5, 0.5, 0.3)
    idle = StrongTransform(ordinary, [24, 28], 48, 0.5, 0.5, 0.3)

    def partner():
        raise AssertionError("read for nothing")

    for seed in range(6):
        torch.manual_seed(seed)
        image, target = ordinary(*painted(40, 30, [[3, 4, 20, 20]], [1]))
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        same, its_target = idle(painted(40, 30, [[3, 4, 20, 20]], [1]), partner)
        assert torch.equal(image, same) and torch.equal(target["boxes"], its_target["boxes"])
        assert torch.equal(torch.get_rng_state(), after)
    assert not happens(0.0) and torch.equal(torch.get_rng_state(), after)


def test_the_images_of_a_mosaic_are_flipped_and_its_colours_changed():
    def made(boxes: list, **options) -> tuple:
        view = painted(60, 40, boxes, [0])
        options = {"horizontal_flip": 0.0, "mosaic": 1.0} | options
        return StrongTransform(lambda *_: None, [50], 90, **options)(view, lambda: view)

    _, target = made([[0, 0, 30, 40]], horizontal_flip=1.0)  # the left half, which goes to the right
    rights = target["boxes"][:, 2].tolist()
    assert rights[0] == pytest.approx(rights[2]) and rights[1] == rights[3] == pytest.approx(75)
    plain, _ = made([[0, 0, 60, 40]])
    assert plain[0].eq(255).all() and plain[1:].eq(0).all()
    assert not torch.equal(made([[0, 0, 60, 40]], color_jitter=0.5)[0], plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_whoever_makes_them(build, workers):
    """Of one process in this one, and of two processes, with workers of their own or without."""

    def batches(share: tuple[int, int], workers: int) -> dict:
        dataset = build(epochs=2, **dict.fromkeys(KINDS, 0.5))
        loader = train_loader(dataset, 6, 1, workers, seed=0, pin_memory=False, share=share)
        found = {}
        for epoch in (0, 1):
            loader.batches.set_epoch(epoch)
            for step in loader:
                for batch in step:
                    (objects,) = batch.objects
                    found[epoch, objects.image_id] = (
                        batch.images.tolist(),
                        objects.boxes.tolist(),
                        objects.labels.tolist(),
                    )
        loader.close()
        return found

    whole = batches((0, 1), 0)
    torch.manual_seed(123)
    assert len(whole) == 12
    assert batches((0, 2), workers) | batches((1, 2), workers) == whole


def test_partners_follow_from_seed_epoch_and_index(build, monkeypatch):
    read, of_dataset = [], CocoDetection._read

    def noted(self, index):
        read.append(index)
        return of_dataset(self, index)

    monkeypatch.setattr(CocoDetection, "_read", noted)

    def partners(index: int, epoch: int, seed: int = 5, **options) -> tuple[int, ...]:
        read.clear()
        build(seed, strong_until=1.0, epochs=9, **options)[index, epoch]
        assert read[0] == index
        return tuple(read[1:])

    assert {len(partners(0, e, mosaic=1.0)) for e in range(3)} == {3}
    assert {len(partners(0, e, mixup=1.0)) for e in range(3)} == {1}
    assert partners(0, 0, large_scale_jitter=1.0) == ()
    assert len(partners(0, 0, mosaic=1.0, mixup=1.0, copy_paste=1.0)) == 5
    assert partners(2, 1, mosaic=1.0) == partners(2, 1, mosaic=1.0)
    draws = [partners(i, e, s, mosaic=1.0) for i in range(3) for e in range(3) for s in (5, 6)]
    assert len(set(draws)) > 14
    assert {index for drawn in draws for index in drawn} == set(range(6))


def test_sizes_and_types_are_the_ordinary_ones(build):
    dataset, counts = build(**dict.fromkeys(KINDS, 0.5)), set()
    for epoch in (0, 1):
        for index, (width, height) in enumerate(SIZES):
            sample = dataset[index, epoch]
            assert tuple(sample.image.shape[1:]) in {resized((height, width), size, 48) for size in (24, 28, 32)}
            assert type(sample.image) is torch.Tensor and sample.image.dtype == torch.uint8
            assert type(sample.objects.boxes) is torch.Tensor and sample.objects.boxes.dtype == torch.float32
            assert sample.objects.image_id == index + 1 and sample.original_size == (height, width)
            assert len(sample.objects.boxes) == len(sample.objects.labels)
            centre, sides = sample.objects.boxes.split(2, dim=1)
            assert (sides > 0).all()
            assert (centre - sides / 2 > -1e-5).all() and (centre + sides / 2 < 1 + 1e-5).all()
            counts.add(len(sample.objects.labels))
    assert len(counts) > 4 and max(counts) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_pass(tmp_path, kind):
    images, file = write_coco(tmp_path, [], SIZES)
    data = DataConfig(train_images=str(images), train_annotations=str(file), train_sizes=[24], max_size=48)
    data.color_jitter = 0.2
    setattr(data, kind, 1.0)
    dataset = build_dataset(data, "train", 0, 2)
    for index in range(len(SIZES)):
        assert dataset[index, 0].objects.boxes.shape == (0, 4)
        assert dataset[index, 0].objects.labels.dtype == torch.int64


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_paste"])
def test_a_broken_partner_is_named_as_any_other_image(build, kind):
    dataset = build(strong_until=1.0, epochs=9, **{kind: 1.0})
    for number in range(2, 7):
        path = dataset.image_folder / f"{number}.png"
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BrokenImage, match=r"image '.*[2-6]\.png' cannot be read.*; give --data\.broken_images mend"):
        for epoch in range(9):
            dataset[0, epoch]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 1), ({"mosaic": 0.1}, 4), ({"mixup": 1.0, "copy_paste": 0.5}, 3), (dict.fromkeys(KINDS, 0.5), 6)],
)
def test_whose_objects_can_be_in_a_sample(options, expected):
    assert images_in_one(DataConfig(**options)) == expected
