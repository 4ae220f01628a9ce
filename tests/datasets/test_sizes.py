import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF
from transformers.image_transforms import get_size_with_aspect_ratio

from datasets.sizes import resized


@pytest.mark.parametrize(
    ("picture", "size", "longest", "expected"),
    [
        ((289, 400), 800, None, (800, 1107)),  # 800 * 400 / 289 = 1107.27
        ((1080, 1920), 750, None, (750, 1333)),
        ((1080, 1920), 800, 1333, (750, 1333)),  # 1333 * 9 / 16 = 749.8
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 480), 800, 1333, (1066, 800)),
        ((200, 640), 800, 1333, (417, 1334)),  # 1333 * 200 / 640 = 416.6, and 417 * 640 / 200 = 1334.4
        ((800, 1333), 800, 1333, (800, 1333)),
        ((5, 8), 4, 4, (2, 3)),  # 4 * 5 / 8 = 2.5, rounded to the even number as Python does
        ((2, 9000), 800, 1333, (1, 1333)),
        ((9000, 2), 800, 1333, (1333, 1)),
        ((1, 1), 1, 1, (1, 1)),
    ],
)
def test_sizes_worked_out_by_hand(picture, size, longest, expected):
    assert resized(picture, size, longest) == expected


@pytest.mark.parametrize("size", [480, 800])
def test_sizes_are_torchvisions_for_every_shorter_side(size):
    box = torch.zeros(0, 4)
    for short in range(1, 2001):
        long = short + (short * 7919) % 1200  # ratios of all kinds
        _, expected = TF.resize_bounding_boxes(box, (short, long), [size])
        assert resized((short, long), size) == expected
        assert resized((long, short), size) == expected[::-1]
        assert expected[0] == size


def test_bounded_sizes_are_those_of_the_published_weights_processor():
    overshoot = 0
    for short in range(40, 2001, 3):
        long = short + (7919 + short * short // 7) % (2 * short)
        found = resized((short, long), 800, 1333)
        expected = get_size_with_aspect_ratio((short, long), 800, 1333)
        assert found[0] == expected[0]
        if long / short * 800 <= 1333:
            assert found == expected
        else:  # transformers makes the longer side of the shorter one before rounding; the original of the rounded one
            assert found[1] == int(found[0] * long / short)
            assert abs(found[1] - expected[1]) <= long / short / 2 + 1
            overshoot = max(overshoot, found[1] - 1333)
    assert overshoot == 1


def test_the_page_of_exports_resizes_alike():
    """Its program runs without this project, and has the rule in two lines of its own."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
    (rule,) = re.findall(r"^side = .*\nsmall = .*\n", page, re.MULTILINE)
    said = {name: json.dumps(value) for name, value in (("size", 800), ("max_size", 1333))}
    for width, height in ((640, 480), (480, 640), (1920, 1080), (640, 200), (1451, 708), (700, 701), (333, 2000)):
        picture = SimpleNamespace(size=(width, height), resize=lambda lengths, _: lengths)
        scope = {"said": said, "picture": picture, "Image": Image}
        exec(rule, scope)
        assert scope["small"] == list(resized((height, width), 800, 1333)[::-1])
