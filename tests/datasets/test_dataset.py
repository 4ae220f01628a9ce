import json
import math
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from datasets.annotations import ImageEntry
from datasets.boxes import clip_boxes
from datasets.categories import Category
from datasets.coco import from_coco
from datasets.dataset import CocoDetection
from datasets.loader import train_loader
from datasets.transforms import train_transform
from tests.datasets.helpers import annotation, picture, write_coco, write_json
from util.errors import UserError

GAPPY = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]


def test_contiguous_labels_follow_the_order_of_ids(tmp_path):
    objects = [
        annotation(1, 1, 90, [0, 0, 4, 4]),
        annotation(2, 1, 3, [0, 0, 8, 8]),
        annotation(3, 2, 18, [1, 1, 5, 5]),
    ]
    dataset = CocoDetection.from_file(*write_coco(tmp_path, objects, categories=GAPPY))
    assert dataset.categories == [Category(0, 3, "car"), Category(1, 18, "dog"), Category(2, 90, "toothbrush")]
    assert [dataset[i].objects.labels.tolist() for i in range(3)] == [[2, 0], [1], []]


def test_original_labels_are_the_ids(tmp_path):
    objects = [annotation(1, 1, 90, [0, 0, 4, 4]), annotation(2, 1, 3, [0, 0, 8, 8])]
    dataset = CocoDetection.from_file(*write_coco(tmp_path, objects, categories=GAPPY), category_ids="original")
    assert dataset.categories == [Category(3, 3, "car"), Category(18, 18, "dog"), Category(90, 90, "toothbrush")]
    assert dataset[0].objects.labels.tolist() == [90, 3]


def test_boxes_are_centres_and_sizes_relative_to_the_image(tmp_path):
    dataset = CocoDetection.from_file(*write_coco(tmp_path, [annotation(1, 1, 1, [10, 15, 20, 6])]))
    sample = dataset[0]  # 40 wide, 30 high
    assert sample.objects.boxes.tolist() == [pytest.approx([20 / 40, 18 / 30, 20 / 40, 6 / 30])]
    assert (sample.objects.image_id, sample.original_size) == (1, (30, 40))
    assert torch.equal(sample.image, TF.pil_to_tensor(picture(40, 30, 1)))
    assert type(sample.objects.boxes) is torch.Tensor
    assert type(sample.image) is torch.Tensor


def test_crowds_are_left_out_and_images_without_objects_stay(tmp_path):
    objects = [annotation(1, 1, 1, [0, 0, 30, 20], iscrowd=1), annotation(2, 2, 2, [1, 2, 3, 4], iscrowd=0)]
    dataset = CocoDetection.from_file(*write_coco(tmp_path, objects))
    assert len(dataset) == 3
    assert [len(dataset[i].objects.labels) for i in range(3)] == [0, 1, 0]
    assert dataset[2].objects.boxes.shape == (0, 4)
    assert dataset.dropped == 0


def test_degenerate_boxes_are_dropped_and_counted(tmp_path):
    degenerate = [[5, 5, 0, 4], [5, 5, 4, 0], [5, 5, -3, 4], [50, 5, 4, 4], [math.nan, 0, 4, 4], [0, 0, math.inf, 4]]
    objects = [annotation(i, 1, 1, bbox) for i, bbox in enumerate(degenerate)]
    objects.append(annotation(9, 1, 2, [30, 20, 100, 100]))
    dataset = CocoDetection.from_file(*write_coco(tmp_path, objects))
    assert dataset.dropped == len(degenerate)
    assert dataset.boxes[0].tolist() == [[30, 20, 40, 30]]
    assert dataset.labels[0].tolist() == [1]


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([2, 3, 4, 5], (2, 3, 6, 8)),
        ([-2, -3, 10, 10], (0, 0, 8, 7)),
        ([35, 25, 10, 10], (35, 25, 40, 30)),
        ([-5, -5, 100, 100], (0, 0, 40, 30)),
        ([40, 0, 5, 5], None),
        ([-5, 0, 5, 5], None),
        ([2, 3, 1e-3, 5], (2, 3, np.float32(2.001), 8)),
        ([39.9999, 3, 5, 1e-4], (np.float32(39.9999), 3, 40, np.float32(3.0001))),
        ([30, 3, 1e-9, 5], None),  # of which single precision, in which boxes travel, leaves nothing
    ],
)
def test_boxes_are_clipped_to_the_image(bbox, expected):
    clipped, possible = clip_boxes(np.array([bbox], dtype=float), np.array([[40, 30]]))
    assert possible.tolist() == [expected is not None]
    assert expected is None or tuple(clipped[0]) == expected


def test_boxes_of_images_of_unknown_size_are_clipped_at_zero_only():
    clipped, possible = clip_boxes(np.array([[-1.0, 2, 1000, 5]]), np.full((1, 2), np.inf))
    assert possible.all() and tuple(clipped[0]) == (0, 2, 999, 7)


@pytest.mark.filterwarnings("error")
def test_impossible_boxes_are_told_without_a_warning():
    boxes = np.array([[math.nan, 0, 4, 4], [0, math.inf, 4, 4], [0, 0, -math.inf, 4], [1e308, 0, 1e308, 4]])
    assert clip_boxes(boxes, np.array([[40, 30]] * 4))[1].tolist() == [False] * 4
    assert clip_boxes(np.zeros((0, 4)), np.zeros((0, 2)))[0].shape == (0, 4)


def test_images_of_unknown_size_are_read(tmp_path):
    images, file = write_coco(tmp_path, [annotation(1, 1, 1, [10, 15, 20, 6])], sizes=((40, 30), (20, 10)))
    content = json.loads(file.read_text())
    content["images"][0] |= {"width": None, "height": None}
    del content["images"][1]["width"], content["images"][1]["height"]
    beyond = [annotation(2, 1, 2, [30, 10, 100, 100]), annotation(3, 1, 1, [45, 10, 5, 5])]
    content["annotations"] += beyond
    dataset = CocoDetection.from_file(images, write_json(file, content), train_transform([30], 40, False))
    assert [dataset[i].original_size for i in range(2)] == [(30, 40), (10, 20)]
    assert sorted(dataset[0].objects.labels.tolist()) == [0, 1]
    inside, clipped = dataset[0].objects.boxes[dataset[0].objects.labels.argsort()].tolist()
    assert inside[1:] == pytest.approx([0.6, 0.5, 0.2]) and clipped[1:] == pytest.approx([2 / 3, 0.25, 2 / 3])


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (annotation(77, 1, 5, [0, 0, 4, 4]), ["annotation 77", "category 5"]),
        (annotation(78, 9, 1, [0, 0, 4, 4]), ["annotation 78", "image 9"]),
        (annotation(79, 1, 1, [0, 0, 4]), ["annotation 79", "bbox"]),
        (annotation(80, 1, 1, ["0", 0, 4, 4]), ["annotation 80", "bbox"]),
        (annotation(81, 1, 1, None), ["annotation 81", "bbox"]),
        ({"id": 82, "image_id": 1, "bbox": [0, 0, 1, 1]}, ["'annotations'", "entry 1", "'category_id'"]),
        (annotation(83, [1], 1, [0, 0, 4, 4]), ["'annotations'", "entry 1", "image_id"]),
        ("text", ["'annotations'", "entry 1", "'id'"]),
    ],
)
def test_a_broken_annotation_is_named(tmp_path, broken, said):
    images, file = write_coco(tmp_path, [annotation(1, 1, 1, [0, 0, 4, 4]), broken])
    with pytest.raises(UserError) as raised:
        CocoDetection.from_file(images, file)
    assert all(part in str(raised.value) for part in [*said, str(file)])


@pytest.mark.parametrize("part", ["images", "categories"])
def test_a_file_without_images_or_categories_is_refused(tmp_path, part):
    images, file = write_coco(tmp_path, [])
    with pytest.raises(UserError, match=part):
        CocoDetection.from_file(images, write_json(file, json.loads(file.read_text()) | {part: []}))


def test_a_picture_of_another_size_is_named(tmp_path):
    images, file = write_coco(tmp_path, [])
    picture(41, 30).save(images / "1.png")
    with pytest.raises(UserError, match=r"'1\.png' is 41x30 pixels.*40x30"):
        CocoDetection.from_file(images, file)[0]


def test_text_and_whole_float_ids_are_ids(tmp_path):
    images, file = write_coco(tmp_path, [annotation("x", "one", 2.0, [0, 0, 4, 4])], sizes=((40, 30),))
    content = json.loads(file.read_text())
    content["images"][0]["id"] = "one"
    sample = CocoDetection.from_file(images, write_json(file, content))[0]
    assert (sample.objects.image_id, sample.objects.labels.tolist()) == ("one", [1])


def test_exif_rotated_picture_with_annotations_of_either_view(tmp_path):
    images, file = write_coco(tmp_path, [annotation(1, 1, 1, [0, 0, 10, 6])], sizes=((20, 10), (10, 20)))
    stored = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = json.loads(file.read_text())
    for entry in content["images"]:
        entry["file_name"] = f"{entry['id']}.jpg"
        stored.save(images / entry["file_name"], exif=exif)
    dataset = CocoDetection.from_file(images, write_json(file, content))
    assert dataset[0].image.shape == (3, 10, 20)
    assert dataset[0].objects.boxes.tolist() == [pytest.approx([0.25, 0.3, 0.5, 0.6])]
    assert dataset[1].image.shape == (3, 20, 10)


def test_annotations_that_were_read_or_made_make_the_same_samples(tmp_path):
    objects = [annotation(1, 2, 1, [10, 15, 20, 6]), annotation(2, 1, 2, [1, 2, 3, 4])]
    images, file = write_coco(tmp_path, objects)
    made = from_coco(json.loads(file.read_text()), "made")
    made.images = [ImageEntry(i.id, i.file_name) for i in made.images]  # of no size: the pictures say it
    read, other = CocoDetection.from_file(images, file), CocoDetection.from_annotations(images, made)
    assert len(read) == len(other) == 3
    for a, b in zip(read, other):
        assert torch.equal(a.image, b.image) and a.original_size == b.original_size
        assert torch.equal(a.objects.boxes, b.objects.boxes) and torch.equal(a.objects.labels, b.objects.labels)
        assert a.objects.image_id == b.objects.image_id


def test_a_missing_folder_is_named_before_the_file_is_read(tmp_path):
    _, file = write_coco(tmp_path, [])
    for missing in (file, tmp_path / "gone.json"):
        with pytest.raises(UserError, match=r"no image folder .*nowhere"):
            CocoDetection.from_file(tmp_path / "nowhere", missing)


@pytest.fixture
def augmented(tmp_path):
    objects = [annotation(i, 1 + i % 6, 1 + i % 2, [2 * i, i, 12, 10]) for i in range(12)]
    paths = write_coco(tmp_path, objects, sizes=((40, 30),) * 6)

    def build(seed: int) -> CocoDetection:
        transform = train_transform([24, 28, 32], 48, True, [24, 30], [16, 28], 0.5, 0.5, 0.3)
        return CocoDetection.from_file(*paths, transform, seed=seed)

    return build


def samples(dataset: CocoDetection, workers: int, epochs: tuple[int, ...]) -> dict:
    loader = train_loader(dataset, 3, 2, workers, seed=0, pin_memory=False)
    found = {}
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch)
        for step in loader:
            for batch in step:
                for image, mask, objects in zip(batch.images, batch.padding_mask, batch.objects):
                    height, width = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
                    key = (epoch, objects.image_id)
                    found[key] = (image[:, :height, :width].numpy().tobytes(), objects.boxes.tolist(), objects.labels)
    return {k: (pixels, boxes, labels.tolist()) for k, (pixels, boxes, labels) in found.items()}


def test_augmentation_is_the_same_whoever_does_it(augmented):
    here = samples(augmented(5), 0, (0, 1))
    torch.manual_seed(123)
    np.random.seed(7)
    assert samples(augmented(5), 2, (0, 1)) == here
    assert len(here) == 12


def test_augmentation_differs_between_epochs_seeds_and_images(augmented):
    first, other = samples(augmented(5), 0, (0, 1)), samples(augmented(6), 0, (0,))
    assert all(first[0, i][0] != first[1, i][0] for i in range(1, 7))
    assert all(first[0, i][0] != other[0, i][0] for i in range(1, 7))
    sizes = {len(first[epoch, i][0]) for epoch in (0, 1) for i in range(1, 7)}
    assert len(sizes) > 3


def test_augmentation_leaves_the_callers_random_state_alone(augmented):
    dataset = augmented(5)
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    dataset[3, 2]
    assert torch.equal(torch.rand(4), expected)


def test_a_workers_error_is_the_sentence_alone(tmp_path):
    images, file = write_coco(tmp_path, [])
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:300])
    loader = train_loader(CocoDetection.from_file(images, file), 3, None, 2, seed=0, pin_memory=False)
    with pytest.raises(UserError) as raised:
        list(islice(loader, 1))
    said = str(raised.value)
    del raised  # its traceback holds the loader, whose workers would end late
    assert said.startswith(f"image '{images / '2.png'}' cannot be read")
    assert "\n" not in said
