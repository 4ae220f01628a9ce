import copy
import json
import math
import re

import pytest

from datasets.coco import from_coco
from datasets.evaluation import evaluate_detections
from datasets.results import sound_results
from tests.datasets.helpers import annotation
from util.errors import UserError

NAMES = {1: "circle", 2: "square", 3: "star"}
OBJECTS = [(i, k, [10.0 * k, 10.0, 8.0, 8.0]) for i in (1, 2) for k in NAMES]


def truth(ids=lambda i: i, kinds=lambda k: k, extra=()):
    """Two images with one object of each class; `ids` and `kinds` write the ids of images and classes."""
    content = {
        "images": [{"id": ids(i), "file_name": f"{i}.png", "width": 60, "height": 60} for i in (1, 2)],
        "categories": [{"id": kinds(k), "name": name} for k, name in NAMES.items()],
        "annotations": [annotation(n, ids(i), kinds(k), box) for n, (i, k, box) in enumerate(OBJECTS)] + list(extra),
    }
    return from_coco(content, "truth.json")


def found(ids=lambda i: i, kinds=lambda k: k) -> list[dict]:
    """The detections of a perfect detector."""
    return [{"image_id": ids(i), "category_id": kinds(k), "bbox": list(box), "score": 0.9} for i, k, box in OBJECTS]


def mixed(i):
    return "x1" if i == 1 else i


def huge(i):
    return 2**63 + i if i == 1 else i


WAYS = {"int": int, "text": str, "float": float, "zeros": lambda i: f"{i:06}", "mixed": mixed, "huge": huge}


@pytest.mark.parametrize("of_truth", WAYS)
@pytest.mark.parametrize("of_results", ["int", "text", "zeros"])
def test_a_perfect_detector_scores_1_however_ids_are_written(of_truth, of_results):
    ways = (WAYS[of_truth], WAYS[of_truth]) if of_truth in ("mixed", "huge") else (WAYS[of_truth], WAYS[of_results])
    annotations, results = truth(ways[0], ways[0]), found(ways[1], ways[1])
    assert evaluate_detections(annotations, results).figures["AP"] == pytest.approx(1)
    written_alike = {type(ways[0](1)), type(ways[1](1))} != {int, str} and ways[0](1) == ways[1](1)
    remarks = sound_results(results, annotations).remarks
    assert len(remarks) == (0 if written_alike else 2)


def test_the_remark_on_ids_names_file_key_and_types():
    first, second = sound_results(found(str, str), truth(), "det.json").remarks
    assert first.startswith("'det.json': image_id '1' (text) is taken for the id 1 (number) of 'truth.json'")
    assert second.startswith("'det.json': category_id '1' (text) is taken for the id 1 (number)")


def test_categories_counted_from_0_are_said():
    (said,) = sound_results(found(kinds=lambda k: k - 1), truth(), "det.json").remarks
    assert "2 detections have categories that the file does not list: [0]" in said
    assert "; not matched: star (3)" in said and "add 1 to each" in said
    assert evaluate_detections(truth(), found(kinds=lambda k: k - 1)).figures["AP"] == 0


def test_other_unknown_categories_are_said_without_a_guess():
    (said,) = sound_results([*found(), found()[0] | {"category_id": "9"}], truth()).remarks
    assert said == "1 detections have categories that the file does not list: ['9']"
    with pytest.raises(UserError, match=r"the first has 'x' \(text\), the file lists 1 \(number\)"):
        sound_results(found(kinds=lambda k: "x"), truth())
    with pytest.raises(UserError, match="'circle' is a name: give its id, 1"):
        sound_results(found(kinds=NAMES.get), truth())


def test_an_unknown_image_is_quoted_with_its_type():
    with pytest.raises(UserError, match=r"'d.json': detection 0 is of image '3' \(text\), .* are 1 \(number\), 2"):
        sound_results([found()[0] | {"image_id": "3"}], truth(), "d.json")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [math.nan, 0, 5, 5]}, "1 not finite"),
        ({"bbox": [0, 0, math.inf, 5]}, "1 not finite"),
        ({"bbox": [0, 0, 10**400, 5]}, "1 not finite"),
        ({"score": math.nan}, "1 not finite"),
        ({"score": "inf"}, "1 not finite"),
        ({"bbox": [0, 0, 5, -5]}, "1 of negative size"),
    ],
)
def test_detections_that_cannot_be_scored_are_left_out_and_counted(change, kind):
    results = [found()[0] | change, *found()]
    before = copy.deepcopy(results)
    sound = sound_results(results, truth())
    assert sound.remarks == [f"1 of 7 detections are left out of the scores ({kind})"]
    assert sound.entries == found()
    assert repr(results) == repr(before)
    scores = evaluate_detections(truth(), results)
    assert scores.figures["AP"] == pytest.approx(1) and scores.remarks == sound.remarks
    assert "remarks" not in json.dumps(scores.to_dict())


def test_a_detection_of_no_width_is_a_wrong_one():
    """As pycocotools has it: before the right one of its class and image, it halves the precision there."""
    results = [found()[0] | {"bbox": [0, 0, 0, 5], "score": 1.0}, *found()]
    assert sound_results(results, truth()).remarks == []
    assert evaluate_detections(truth(), results).figures["AP"] < 0.95


@pytest.mark.parametrize(
    "box",
    [[math.nan, 0, 5, 5], [0, 0, math.nan, 5], [0, 0, 0, 5], [0, 0, 5, -1], [70, 0, 5, 5]],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_impossible_truth_does_not_lower_the_score_of_a_perfect_detector(box, crowd):
    extra = [annotation(99 + n, 1, k, box, iscrowd=crowd) for n, k in enumerate((1, 1, 2))]
    scores = evaluate_detections(truth(extra=extra), found())
    assert scores.figures["AP"] == pytest.approx(1) and scores.figures["AR_100"] == pytest.approx(1)
    assert [c["objects"] for c in scores.per_class.values()] == [2, 2, 2]


@pytest.mark.parametrize("area", [0, -1, math.nan, math.inf, "64", "many", None, [64], True, 1e300])
def test_whatever_the_area_says_small_objects_are_scored(area):
    annotations = truth()
    extra = [annotation(50, 1, 1, [30.0, 30.0, 8.0, 8.0], area=area)]
    results = [*found(), {"image_id": 1, "category_id": 1, "bbox": [30, 30, 8, 8], "score": 0.8}]
    annotations = truth(extra=extra)
    scores = evaluate_detections(annotations, results)
    assert scores.figures["AP"] == pytest.approx(1) and scores.per_class["circle"]["objects"] == 3
    assert scores.figures["AP_small"] == pytest.approx(1)
    large = scores.figures["AP_large"]
    assert large == pytest.approx(1) if area == 1e300 else large == -1  # it counts in the size that it states


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"annotations": found(), "images": []}, "an object whose 'annotations' may be that list"),
        ({"predictions": found()}, "an object whose 'predictions' may be that list"),
        ({"images": [], "annotations": [annotation(1, 1, 1, [0, 0, 1, 1])]}, "this may be an annotation file"),
        ({}, "an object with no keys"),
        ("text", "must be a list of COCO results"),
        (None, "must be a list of COCO results"),
        ([["1", 1, 0.5]], "detection 0 has no 'image_id'"),
        ([found()[0] | {"image_id": True}], "has the image_id true; it must be"),
        ([found()[0] | {"category_id": None}], "has the category_id null; it must be"),
        ([found()[0] | {"bbox": "1234"}], "must have a bbox of four numbers"),
        ([found()[0] | {"bbox": {"a": 1, "b": 2, "c": 3, "d": 4}}], "must have a bbox of four numbers"),
        ([found()[0] | {"score": True}], "a numeric score"),
    ],
)
def test_other_shapes_are_one_sentence(content, said):
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        sound_results(content, truth(), "det.json")
    assert "'det.json'" in str(raised.value)


def test_an_empty_file_of_detections_is_said():
    assert sound_results([], truth(), "det.json").remarks == ["'det.json': there are no detections in it"]
    assert sound_results([], truth()).remarks == []  # a model that found nothing


def test_numbers_written_as_text_are_read():
    results = [r | {"bbox": list(map(str, r["bbox"])), "score": "0.9"} for r in found()]
    assert sound_results(results, truth()).entries == found()
