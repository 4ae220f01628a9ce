import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torchvision import tv_tensors

from datasets.transforms import DropEmptyBoxes, RandomSizeCrop, eval_transform, to_image, train_transform


def target(boxes: list, labels: list[int], width: int, height: int) -> dict:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def black(width: int, height: int) -> tv_tensors.Image:
    return to_image(Image.new("RGB", (width, height)))


@pytest.mark.parametrize(
    ("horizontal", "vertical", "expected"),
    [
        (1.0, 0.0, [[60.0, 5.0, 90.0, 25.0]]),
        (0.0, 1.0, [[10.0, 25.0, 40.0, 45.0]]),
        (1.0, 1.0, [[60.0, 25.0, 90.0, 45.0]]),
        (0.0, 0.0, [[10.0, 5.0, 40.0, 25.0]]),
    ],
)
def test_flips_mirror_the_boxes(horizontal, vertical, expected):
    transform = train_transform([50], 200, False, horizontal_flip=horizontal, vertical_flip=vertical)
    _, found = transform(black(100, 50), target([[10, 5, 40, 25]], [3], 100, 50))
    assert found["boxes"].tolist() == expected
    assert found["labels"].tolist() == [3]


def test_resizing_scales_the_boxes():
    transform = train_transform([100], 1000, False, horizontal_flip=0.0)
    image, found = transform(black(80, 50), target([[10, 5, 40, 25]], [0], 80, 50))
    assert image.shape == (3, 100, 160)
    assert found["boxes"].tolist() == [[20, 10, 80, 50]]
    # Each axis by its own ratio of whole pixels: 400x289 becomes 1107x800.
    transform = train_transform([800], 1333, False, horizontal_flip=0.0)
    image, found = transform(black(400, 289), target([[100, 0, 400, 289]], [0], 400, 289))
    assert image.shape == (3, 800, 1107)
    assert found["boxes"][0].tolist() == pytest.approx([100 * 1107 / 400, 0, 1107, 800], rel=1e-6)


def test_thin_boxes_stay_and_only_what_a_crop_leaves_nothing_of_goes():
    thin = [[10, 5, 10.001, 25], [3, 7, 40, 7.25]]
    boxes, labels = [*thin, [50, 10, 60, 20]], [4, 2, 1]
    transform = train_transform([30], 1000, False, horizontal_flip=0.0)  # half the size: a sixteenth of a pixel thin
    _, found = transform(black(100, 60), target(boxes, labels, 100, 60))
    assert found["labels"].tolist() == labels
    assert found["boxes"].tolist() == [pytest.approx([v / 2 for v in box], rel=1e-6) for box in boxes]
    # A crop from 10 to 45 keeps the sliver of the first box, ends at the edge of the last, and cuts the second.
    cropped = RandomSizeCrop(35, 35)
    cropped.make_params = lambda flat_inputs: {"top": 0, "left": 10, "height": 35, "width": 40}
    image, found = DropEmptyBoxes()(*cropped(black(100, 60), target(boxes, labels, 100, 60)))
    assert image.shape[1:] == (35, 40) and found["labels"].tolist() == [4, 2]
    assert found["boxes"].tolist() == [pytest.approx([0, 5, 0.001, 25], abs=1e-6), [0, 7, 30, 7.25]]
    assert isinstance(found["boxes"], tv_tensors.BoundingBoxes)


def test_crops_leave_no_empty_boxes_and_whole_images_leave_none_out():
    boxes = torch.tensor([[10 * i, 5 * i, 10 * i + 0.5 + i % 3, 5 * i + 8] for i in range(10)])
    transform = train_transform([40], 1000, True, [50], [20, 30], 0.0)
    counts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        _, found = transform(black(100, 50), target(boxes.tolist(), list(range(10)), 100, 50))
        assert len(found["boxes"]) == len(found["labels"])
        assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()
        counts.add(len(found["labels"]))
    assert max(counts) == 10 and min(counts) < 5


@pytest.mark.parametrize(
    ("size", "longest", "given_size", "expected"),
    [
        (800, 1333, (640, 480), (1066, 800)),
        (800, 1333, (480, 640), (800, 1066)),
        (800, 1333, (1000, 300), (1333, 400)),  # the longer side binds: 300 * 1333 / 1000 = 399.9
        (800, 1333, (334, 289), (924, 800)),  # not 799
        (96, 160, (96, 96), (96, 96)),
        (50, 60, (200, 100), (60, 30)),
        (50, 1000, (200, 100), (100, 50)),
        (800, 1333, (2, 9000), (1, 1333)),
        (800, 1333, (9000, 2), (1333, 1)),
    ],
)
def test_evaluation_sizes(size, longest, given_size, expected):
    image = eval_transform(size, longest)(black(*given_size))
    assert tuple(image.shape[1:]) == expected[::-1]


def test_evaluation_resizes_as_torchvision_does():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    found = eval_transform(60, 1000)(to_image(picture))
    resized = torchvision.transforms.v2.functional.resize(
        torchvision.transforms.v2.functional.pil_to_tensor(picture), [60, 80], antialias=True
    )
    assert torch.equal(found, resized)
    # The published models saw what Pillow makes of it, which rounds a little differently.
    by_pillow = torch.from_numpy(np.asarray(picture.resize((80, 60), Image.Resampling.BILINEAR)).copy())
    assert (found.permute(1, 2, 0).int() - by_pillow.int()).abs().max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    smallest=st.integers(1, 50),
    extra=st.integers(0, 30),
    seed=st.integers(0, 10**6),
)
def test_crops_have_a_size_in_the_range_and_lie_in_the_image(width, height, smallest, extra, seed):
    torch.manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = tv_tensors.Image(torch.stack([rows, columns, rows * 0]).to(torch.uint8))
    cropped = RandomSizeCrop(smallest, smallest + extra)(image)
    for axis, side in ((1, height), (2, width)):
        assert min(smallest, side) <= cropped.shape[axis] <= min(smallest + extra, side)
    top, left = int(cropped[0, 0, 0]), int(cropped[1, 0, 0])
    height, width = cropped.shape[1:]
    assert torch.equal(cropped, image[:, top : top + height, left : left + width])  # nothing padded


def mosaic() -> tuple[Image.Image, list[list[int]], list[int]]:
    """A black picture with six rectangles, each of the grey value that tells its label."""
    picture = Image.new("RGB", (160, 120))
    boxes = [[8 + 52 * i, 8 + 58 * j, 8 + 52 * i + 34, 8 + 58 * j + 40] for j in range(2) for i in range(3)]
    labels = [4, 1, 5, 0, 2, 3]
    for (x0, y0, x1, y1), label in zip(boxes, labels):
        ImageDraw.Draw(picture).rectangle([x0, y0, x1 - 1, y1 - 1], fill=(100 + 30 * label,) * 3)
    return picture, boxes, labels


def test_every_label_travels_with_its_box():
    picture, boxes, labels = mosaic()
    transform = train_transform([96, 120, 140], 220, True, [100, 130], [50, 90], 0.5, 0.5)
    counts = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, found = transform(to_image(picture), target(boxes, labels, 160, 120))
        height, width = image.shape[1:]
        assert len(found["boxes"]) == len(found["labels"])
        counts.add(len(found["labels"]))
        x0, y0, x1, y1 = found["boxes"].T
        assert ((x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height) & (x1 > x0) & (y1 > y0)).all()
        grey = image[0].float()
        for (left, top, right, bottom), label in zip(found["boxes"].tolist(), found["labels"].tolist()):
            if min(right - left, bottom - top) >= 4:  # smaller ones are all edge
                shade = float(grey[int((top + bottom) / 2), int((left + right) / 2)])
                assert shade == pytest.approx(100 + 30 * label, abs=3)
    assert len(counts) > 2, "crops should lose some objects"


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_boxes_stay_on_the_pixels(jitter):
    picture = Image.new("RGB", (150, 110))
    ImageDraw.Draw(picture).rectangle([60, 40, 119, 79], fill=(255, 255, 255))
    transform = train_transform([90, 110, 130], 200, True, [100, 120], [60, 90], 0.5, 0.5, jitter)
    seen = 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, found = transform(to_image(picture), target([[60, 40, 120, 80]], [0], 150, 110))
        bright = image[0] > 0.35 * 255
        rows, columns = torch.nonzero(bright, as_tuple=True)
        if len(found["boxes"]) == 0:
            assert len(rows) < 2 * sum(image.shape[1:])  # at most a sliver on an edge was left
            continue
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found["boxes"][0].tolist() == pytest.approx([float(v) for v in expected], abs=2)
        seen += 1
    assert seen > 40


@pytest.mark.parametrize("crop", [True, False])
def test_images_without_objects_pass(crop):
    transform = train_transform([40, 48], 64, crop, [40], [24, 32], 0.5, 0.5, 0.2)
    for seed in range(10):
        torch.manual_seed(seed)
        image, found = transform(black(50, 40), target([], [], 50, 40))
        assert found["boxes"].shape == (0, 4)
        assert found["labels"].shape == (0,)
        assert image.dtype == torch.uint8


def test_half_of_the_images_are_cropped():
    transform = train_transform([50], 500, True, [50], [20, 20], 0.0)
    # Whole images are 100x50, crops are square and enlarged to 50x50.
    torch.manual_seed(0)
    widths = [transform(black(100, 50), target([], [], 100, 50))[0].shape[2] for _ in range(200)]
    assert set(widths) == {50, 100}
    assert 70 <= widths.count(50) <= 130
