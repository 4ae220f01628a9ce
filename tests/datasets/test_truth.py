import math

import pytest

from datasets.coco import from_coco
from datasets.truth import check_learnable, check_scorable, possible_objects, remarks_on_truth, without_objects
from tests.datasets.helpers import annotation
from util.errors import UserError

GOOD = [0, 0, 4, 4]
IMPOSSIBLE = {
    "NaN": [math.nan, 0, 4, 4],
    "infinite": [0, 0, math.inf, 4],
    "huge": [0, 0, 10**400, 4],
    "flat": [0, 0, 4, 0],
    "negative": [9, 9, -4, 4],
    "outside": [40, 0, 4, 4],
}


def read(*boxes, image=None, crowds=(), **parts):
    """Annotations with these boxes on one image of 40 x 30 pixels."""
    objects = [annotation(i, 1, 1, box, iscrowd=int(i in crowds)) for i, box in enumerate(boxes)]
    images = [image or {"id": 1, "file_name": "1.png", "width": 40, "height": 30}]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]} | parts
    return from_coco(content, "f.json")


@pytest.mark.parametrize("box", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_box_is_no_object_whoever_asks(box):
    annotations = read(GOOD, box)
    assert possible_objects(annotations).tolist() == [True, False]
    (remark,) = remarks_on_truth(annotations)
    assert "'f.json': 1 of 2 boxes do not count as objects" in remark
    check_learnable(annotations)
    assert "have a box that is not finite" in without_objects(read(box))


def test_the_kinds_of_impossible_boxes_are_counted():
    (remark,) = remarks_on_truth(read(GOOD, *IMPOSSIBLE.values()))
    assert "6 of 7 boxes do not count as objects (3 not finite, 2 without width or height, 1 outside their images)" in (
        remark
    )


def test_an_image_of_unknown_size_has_no_outside():
    annotations = read([400, 0, 4, 4], image={"id": 1, "file_name": "1.png"})
    assert possible_objects(annotations).all() and remarks_on_truth(annotations) == []


def test_a_good_file_has_no_remarks():
    assert remarks_on_truth(read(GOOD, [-1, -1, 42, 32], [5, 5, 4, 4])) == []
    assert remarks_on_truth(read()) == []


def test_outlying_and_doubled_boxes_are_counted():
    outlying = [-2, 0, 4, 4]
    beyond, doubled = remarks_on_truth(read(outlying, GOOD, GOOD, GOOD))
    assert "1 boxes reach more than a pixel beyond" in beyond and "2 boxes are doubled" in doubled
    assert remarks_on_truth(read(GOOD, GOOD, crowds=(1,))) == []


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (read(), "the list 'annotations' of 'f.json' is empty"),
        (read(annotations=None), "'f.json' has no list 'annotations'"),
        (read(GOOD, GOOD, crowds=(0, 1)), r"all annotations of 'f.json' \(2\) are crowds \(iscrowd is 1\)"),
        (read([0, 0, 0, 4]), r"all annotations of 'f.json' have a box .* no width or height"),
        (
            read(GOOD, [0, 0, 0, 4], crowds=(0,)),
            r"all annotations .* are crowds \(iscrowd is 1: 1\) or have .*\(1\)",
        ),
    ],
)
def test_nothing_to_learn_from_and_nothing_to_score_say_why(annotations, said):
    with pytest.raises(UserError, match=f"nothing to learn from: {said}"):
        check_learnable(annotations)
    with pytest.raises(UserError, match=f"nothing to score: {said}"):
        check_scorable(annotations)


def test_one_object_is_enough():
    annotations = read(GOOD, GOOD, [0, 0, 0, 4], crowds=(0,))
    assert without_objects(annotations) is None
    check_learnable(annotations)
    check_scorable(annotations)
