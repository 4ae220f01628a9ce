"""Of which classes every object is listed: by hand, beside the `lvis` package, and in pictures made of several."""

import json

import numpy as np
import pytest
import torch

from datasets.annotations import Annotations
from datasets.coco import from_coco
from datasets.copy_paste import copy_paste
from datasets.dataset import CocoDetection
from datasets.exhaustive import exhaustive_in_all, exhaustive_labels
from datasets.mixup import mixup
from datasets.mosaic import mosaic
from datasets.splits import build_dataset
from datasets.transforms import View, train_transform
from tests.datasets.helpers import SHAPES, annotation, painted, write_coco
from tests.datasets.test_evaluation import found
from tests.datasets.test_federated import HERE, by_lvis, lvis_scene  # noqa: F401  # by_lvis is a fixture
from util.config import DataConfig
from util.errors import UserError

LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def labels_of(annotations: Annotations) -> list[list[int]]:
    """With the ids of the classes for labels."""
    ids = np.array([c.id for c in annotations.categories])
    return [known.tolist() for known in exhaustive_labels(annotations, ids)]


def test_classes_worked_out_by_hand():
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 60} for i in (4, 9, 2)]
    for image, negative, partly in zip(images, ([7, 99], [], [3, 7]), ([5], [3], [])):
        image |= dict(zip(LISTS, (negative, partly)))
    objects = [
        annotation(1, 4, 5, [1, 1, 9, 9]),  # of 5 not all are listed
        annotation(2, 4, 3, [1, 1, 9, 9]),
        annotation(3, 9, 7, [1, 1, 9, 9], iscrowd=1),  # somebody looked for it
        annotation(4, 9, 5, [70, 1, 9, 9]),  # lies outside: it says nothing
        annotation(5, 2, 3, [1, 1, 9, 9]),  # which the lists deny
    ]
    categories = [{"id": k, "name": f"c{k}"} for k in (7, 3, 5)]
    read = from_coco({"images": images, "annotations": objects, "categories": categories}, "x.json")
    assert labels_of(read) == [[7, 3], [7], [7, 3]]


def test_they_are_those_in_which_lvis_calls_a_detection_wrong_that_finds_nothing(by_lvis, monkeypatch):  # noqa: F811
    """By the package: a detection of every class in every image, far from all objects, with an equal score."""
    truth, _ = lvis_scene(5)
    far = [
        {**found(i["id"], c["id"], [399.0, 399.0, 1.0, 1.0], 0.5)} for i in truth["images"] for c in truth["categories"]
    ]
    counted: set[tuple[int, int]] = set()
    import lvis

    accumulate = lvis.LVISEval.accumulate

    def noted(run) -> None:
        for of_image in run.eval_imgs:
            if of_image is not None and not of_image["dt_ignore"].any() and of_image["dt_ids"]:
                counted.add((of_image["image_id"], of_image["category_id"]))
        accumulate(run)

    monkeypatch.setattr(lvis.LVISEval, "accumulate", noted)
    by_lvis(truth, far)
    read = from_coco(truth, "x.json")
    ours = {(image.id, k) for image, known in zip(read.images, labels_of(read)) for k in known}
    assert ours == counted and len(ours) > 30


def view(known: list[int], boxes=((2, 2, 30, 20),), labels=(0,), size=(60, 40)) -> View:
    image, target = painted(*size, [*boxes], [*labels])
    return image, target | {"exhaustive": torch.tensor(known, dtype=torch.long)}


def known_in(made: View) -> list[int]:
    return made[1]["exhaustive"].tolist()


def test_a_picture_of_several_knows_what_each_part_knows():
    """3 is negative in both, or has objects in one; of 1 the second says nothing, of 5 the first."""
    first, second, nothing = view([1, 3, 4]), view([3, 4, 5]), view([])
    assert known_in(mixup(first, second)) == known_in(mixup(second, first)) == [3, 4]
    assert known_in(mixup(first, nothing)) == [] and known_in(mixup(first, first)) == [1, 3, 4]
    assert known_in(mosaic([first, second, first, view([4, 3, 9])], (40, 60))) == [3, 4]
    assert known_in(mosaic([first, first, first, nothing], (40, 60))) == []
    # Of a canvas a pixel wide and high one of the four is seen.
    thin = [known_in(mosaic([view([k]) for k in range(4)], (1, 1))) for _ in range(9)]
    assert all(len(known) == 1 for known in thin)
    plain = painted(60, 40, [], [])
    assert exhaustive_in_all([plain[1], plain[1]]) == {} and "exhaustive" not in mixup(plain, plain)[1]


def test_of_a_source_of_which_nothing_is_pasted_nothing_needs_be_known():
    first, second = view([1, 3]), view([3], boxes=((0, 0, 12, 9),))
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        made = copy_paste(first, second)
        pasted = len(made[1]["labels"]) > 1 or not torch.equal(made[0], first[0])
        seen.add(pasted)
        assert known_in(made) == ([3] if pasted else [1, 3])
    assert seen == {True, False}
    assert known_in(copy_paste(first, view([], boxes=((0, 0, 60, 40),)))) == [1, 3]  # too large to be pasted


def test_cutting_and_turning_leave_them_as_they_are():
    transform = train_transform([24, 28], 48, True, [24, 30], [16, 28], 0.5, 0.5, 0.3)
    dropped = 0
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = view([0, 2, 3], boxes=((0, 0, 6, 6),))
        target = transform(image, target)[1]
        assert target["exhaustive"].tolist() == [0, 2, 3]  # also where the object is cut away: no other is there
        dropped += not len(target["boxes"])
    assert 0 < dropped < 20


@pytest.fixture
def build(tmp_path):
    """Six images, each of which knows all classes but one or two."""
    categories = [*SHAPES, *({"id": k, "name": f"c{k}"} for k in (5, 7, 9, 11))]
    objects = [annotation(i, 1 + i % 6, 1 + i % 2, [2 * i, i, 12, 10]) for i in range(10)]
    images, file = write_coco(
        tmp_path, objects, ((40, 30), (30, 40), (36, 36), (60, 30), (44, 30), (30, 50)), categories
    )
    content = json.loads(file.read_text())
    for i, image in enumerate(content["images"]):
        negative = [k for k in (1, 2, 5, 7, 9, 11) if k != (5, 7, 9, 11, 5, 7)[i]]
        image |= dict(zip(LISTS, (negative, [1] if i == 2 else [])))
    file.write_text(json.dumps(content))

    def made(**options) -> CocoDetection:
        data = DataConfig(train_images=str(images), train_annotations=str(file), train_sizes=[24, 28, 32], max_size=48)
        for name, value in options.items():
            assert hasattr(data, name)
            setattr(data, name, value)
        return build_dataset(data, "train", 5, 4)

    return made


EXPECTED = [[0, 1, 3, 4, 5], [0, 1, 2, 4, 5], [1, 2, 3, 5], [0, 1, 2, 3, 4], [0, 1, 3, 4, 5], [0, 1, 2, 4, 5]]


def test_samples_say_it_if_they_are_asked(build):
    plain = build()
    dataset = plain.with_exhaustive()
    for index, expected in enumerate(EXPECTED):
        sample, usual = dataset[index, 1], plain[index, 1]
        assert sample.objects.exhaustive.tolist() == expected and sample.objects.exhaustive.dtype == torch.int64
        assert usual.objects.exhaustive is None
        assert torch.equal(sample.image, usual.image) and torch.equal(sample.objects.boxes, usual.objects.boxes)
    by_ids = build(category_ids="original").with_exhaustive()
    assert by_ids[0].objects.exhaustive.tolist() == [1, 2, 7, 9, 11]


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_paste", "large_scale_jitter"])
def test_strong_augmentations_know_what_all_their_images_know(build, kind, monkeypatch):
    dataset, read, of_dataset = build(**{kind: 1.0}).with_exhaustive(), [], CocoDetection._read

    def noted(self, index):
        read.append(index)
        return of_dataset(self, index)

    monkeypatch.setattr(CocoDetection, "_read", noted)
    plain, less = build(**{kind: 1.0}), 0
    for index in range(6):
        read.clear()
        sample = dataset[index, 0]
        together = set.intersection(*(set(EXPECTED[i]) for i in read))
        known = sample.objects.exhaustive.tolist()
        assert known == sorted(together) or (kind == "copy_paste" and known == EXPECTED[index])
        less += known != EXPECTED[index]
        assert torch.equal(sample.image, plain[index, 0].image)  # nothing is drawn for it
    assert (less > 0) == (kind != "large_scale_jitter")


def test_images_that_are_left_out_take_theirs_with_them(build, tmp_path):
    from datasets.inspection import Look

    dataset = build().with_exhaustive()
    entries = [dataset.images[i] for i in (0, 2, 5)]
    looks = [Look(entry, dataset.image_folder / entry.file_name) for entry in entries]
    left = dataset.checked(looks)
    assert [left[i].objects.exhaustive.tolist() for i in range(3)] == [EXPECTED[i] for i in (0, 2, 5)]
    assert build().checked(looks).exhaustive is None


def test_a_file_that_does_not_say_it_is_refused(tmp_path):
    images, file = write_coco(tmp_path, [annotation(1, 1, 1, [1, 2, 3, 4])])
    with pytest.raises(
        UserError, match=r"^loss.federated penalises classes that were looked for, but the images of .*"
    ):
        CocoDetection.from_file(images, file).with_exhaustive()
