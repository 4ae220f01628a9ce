import torch

from datasets.copy_paste import LARGEST, copy_paste
from datasets.visible import VISIBLE
from tests.datasets.helpers import extent, of_colour, painted

OWN = [[5, 5, 45, 25], [50, 30, 62, 55]]
PASTED = [[10, 10, 50, 40], [60, 5, 80, 25], [5, 50, 35, 58]]


def test_boxes_are_what_is_still_seen_of_the_objects():
    view, counts, hidden, shrunk = painted(90, 60, OWN, [0, 1]), set(), 0, 0
    for seed in range(150):
        torch.manual_seed(seed)
        image, target = copy_paste(view, painted(100, 70, PASTED, [2, 3, 4]))
        assert image.shape == (3, 60, 90) and image.dtype == torch.uint8
        boxes = dict(zip(target["labels"].tolist(), target["boxes"].tolist()))
        assert len(boxes) == len(target["labels"])  # none of them twice
        counts.add(len(boxes))
        for label, whole in enumerate(OWN + PASTED):
            pixels = of_colour(image, label)
            area = (whole[2] - whole[0]) * (whole[3] - whole[1])
            assert (label in boxes) == (int(pixels.sum()) >= VISIBLE * area)
            if label in boxes:
                assert boxes[label] == extent(pixels)
                shrunk += label < 2 and boxes[label] != whole
            hidden += label < 2 and label not in boxes
    assert counts >= {2, 3, 4, 5} and hidden > 3 and shrunk > 3


def test_half_of_the_objects_are_pasted_anywhere():
    places = []
    for seed in range(200):
        torch.manual_seed(seed)
        _, target = copy_paste(painted(60, 40, [], []), painted(30, 30, [[3, 4, 13, 10]], [2]))
        places += target["boxes"].tolist()
    assert 75 < len(places) < 125
    lefts, tops = [box[0] for box in places], [box[1] for box in places]
    assert min(lefts) < 3 and max(lefts) > 47 and min(tops) < 3 and max(tops) > 31
    assert {(box[2] - box[0], box[3] - box[1]) for box in places} == {(10.0, 6.0)}


def test_what_lies_in_a_rectangle_comes_with_it():
    found = set()
    for seed in range(40):
        torch.manual_seed(seed)
        source = painted(60, 60, [[10, 10, 40, 30], [15, 15, 20, 20], [39, 12, 49, 20]], [2, 3, 4])  # 4: a tenth
        _, target = copy_paste(painted(200, 200, [], []), source)
        found.add(tuple(sorted(target["labels"].tolist())))
    assert found == {(), (3,), (4,), (3, 4), (2, 3), (2, 3, 3), (2, 3, 4), (2, 3, 3, 4)}


def test_fractions_of_a_pixel_are_kept():
    box = [4.25, 6.5, 12.75, 11.125]
    for seed in range(8):
        torch.manual_seed(seed)
        _, target = copy_paste(painted(50, 50, [box], [0]), painted(20, 20, [box], [1]))
        assert target["boxes"][0].tolist() == box or len(target["boxes"]) == 2
        if len(target["boxes"]) == 2:
            left, top, right, bottom = target["boxes"][1].tolist()
            assert (left % 1, top % 1, right - left, bottom - top) == (0.25, 0.5, 8.5, 4.625)


def test_objects_that_are_too_large_are_not_pasted():
    assert LARGEST == 0.25
    for size, most in (((20, 10), 1), ((21, 10), 0), ((41, 1), 0), ((1, 21), 0)):  # on 40 x 20 pixels
        counts = set()
        for seed in range(12):
            torch.manual_seed(seed)
            _, target = copy_paste(painted(40, 20, [], []), painted(50, 50, [[0, 0, *size]], [0]))
            counts.add(len(target["labels"]))
        assert max(counts) == most


def test_images_without_objects():
    view = painted(40, 30, [[2, 3, 9, 9]], [1])
    image, target = copy_paste(view, painted(20, 20, [], []))
    assert torch.equal(image, view[0]) and target["boxes"].tolist() == [[2, 3, 9, 9]]
    _, target = copy_paste(painted(40, 30, [], []), painted(20, 20, [], []))
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
