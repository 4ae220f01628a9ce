import contextlib
import copy
import io
import json
import re

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.coco import from_coco, to_coco
from datasets.evaluation import Scores, evaluate_detections, to_coco_results
from util.errors import UserError

NAMES = [
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
]


def truth_of(annotations: list[dict], images: int = 1, names: tuple[str, ...] = ("cat", "dog")) -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 300} for i in range(1, images + 1)],
        "categories": [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(names)],
        "annotations": annotations,
    }


def thing(number: int, image: int, category: int, bbox: list, **more) -> dict:
    base = {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
    return {**base, "area": bbox[2] * bbox[3], "iscrowd": 0, **more}


def found(image: int, category: int, bbox: list, score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def random_scene(seed: int) -> tuple[dict, list[dict]]:
    """Objects of all sizes, some crowds; detections that are near, far, doubled, of the wrong class, or too many."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, 13):
        for _ in range(rng.integers(0, 7)):
            w, h = rng.uniform(8, 200, 2)
            bbox = [float(v) for v in (*rng.uniform(0, 150, 2), w, h)]
            category = int(rng.choice([10, 20, 30]))
            crowd = int(rng.random() < 0.2)
            # Areas of segments are smaller than those of boxes.
            entry = thing(len(annotations) + 1, image, category, bbox, iscrowd=crowd, area=float(w * h * 0.7))
            annotations.append(entry)
            for _ in range(rng.integers(0, 4)):
                moved = [float(v) for v in np.array(bbox) * rng.uniform(0.85, 1.15, 4)]
                other = int(rng.choice([10, 20, 30])) if rng.random() < 0.2 else category
                results.append(found(image, other, moved, float(rng.uniform(0.4, 1))))
        for _ in range(rng.integers(0, 130) if image % 4 == 0 else rng.integers(0, 5)):
            bbox = [float(v) for v in (*rng.uniform(0, 200, 2), *rng.uniform(5, 90, 2))]
            results.append(found(image, int(rng.choice([10, 20, 30])), bbox, float(rng.uniform(0, 0.6))))
    return truth_of(annotations, 12, ("cat", "dog", "cow")), results


def score(truth: dict, results: list[dict], *args, **options) -> Scores:
    """Of what a file with this content says."""
    return evaluate_detections(from_coco(truth, "truth.json"), results, *args, **options)


def by_pycocotools(truth: dict, results: list[dict], image_ids: list[int] | None = None) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy({"info": {}, **truth})
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        if image_ids is not None:
            run.params.imgIds = image_ids
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_twelve_figures_are_those_of_pycocotools(seed):
    truth, results = random_scene(seed)
    scores = score(truth, results)
    assert list(scores.figures) == NAMES
    expected = by_pycocotools(truth, results)
    assert 0.05 < expected[0] < 0.95
    assert list(scores.figures.values()) == expected


@pytest.mark.parametrize("scorer", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize(("limit", "chosen"), [(100, None), (300, [2, 3, 8, 11]), (10, None), (3, [4])])
def test_by_option_a_library_gives_the_same_scores(scorer, limit, chosen):
    truth, results = random_scene(5)
    ours, theirs = (score(truth, results, limit, chosen, **by) for by in ({}, {"scorer": scorer}))
    assert ours.figures == pytest.approx(theirs.figures, abs=0 if scorer == "pycocotools" else 1e-15)
    assert ours.per_class.keys() == theirs.per_class.keys() and ours.tables == theirs.tables
    if scorer == "pycocotools":
        assert ours == theirs


def test_restricted_to_some_images_they_are_still_those_of_pycocotools():
    truth, results = random_scene(1)
    chosen = [2, 3, 8, 11]
    expected = by_pycocotools(truth, results, chosen)
    assert list(score(truth, results, image_ids=chosen).figures.values()) == pytest.approx(expected)
    assert score(truth, results, image_ids=iter(chosen)).figures["AP"] == pytest.approx(expected[0])
    assert expected[0] != pytest.approx(by_pycocotools(truth, results)[0], abs=1e-3)


def test_the_inputs_are_not_changed():
    truth, results = random_scene(2)
    annotations = from_coco(truth, "truth.json")
    before = copy.deepcopy((to_coco(annotations), results))
    evaluate_detections(annotations, results)
    assert (to_coco(annotations), results) == before


def perfect(truth: dict) -> list[dict]:
    return [
        found(a["image_id"], a["category_id"], a["bbox"], 0.9) for a in truth["annotations"] if not a.get("iscrowd")
    ]


def test_perfect_detections_have_ap_1():
    truth, _ = random_scene(3)
    scores = score(truth, perfect(truth))
    assert {k: v for k, v in scores.figures.items() if k not in ("AR_1", "AR_10")} == pytest.approx(
        dict.fromkeys([n for n in NAMES if n not in ("AR_1", "AR_10")], 1.0)
    )
    assert all(v["AP"] == pytest.approx(1) for v in scores.per_class.values())


def test_sizes_without_objects_have_no_score():
    truth = truth_of([thing(1, 1, 10, [0, 0, 50, 50])])
    figures = score(truth, perfect(truth)).figures
    assert (figures["AP_small"], figures["AP_medium"], figures["AP_large"]) == (-1, pytest.approx(1), -1)


def test_images_without_detections_count():
    truth = truth_of([thing(1, 1, 10, [0, 0, 50, 50]), thing(2, 2, 10, [0, 0, 50, 50])], images=2)
    figures = score(truth, [found(1, 10, [0, 0, 50, 50], 0.9)]).figures
    # Precision 1 up to recall 1/2: 51 of the 101 recall points.
    assert figures["AP"] == pytest.approx(51 / 101)
    assert figures["AR_100"] == pytest.approx(0.5)


def test_no_detections_at_all_have_ap_0():
    scores = score(truth_of([thing(1, 1, 10, [0, 0, 50, 50])]), [])
    assert scores.figures["AP"] == 0
    assert scores.figures["AR_100"] == 0
    assert scores.per_class["cat"] == {"AP": 0, "AP50": 0, "AP75": 0, "objects": 1}
    assert scores.per_class["dog"] == {"AP": -1, "AP50": -1, "AP75": -1, "objects": 0}


def test_no_objects_at_all_have_no_score():
    scores = score(truth_of([]), [found(1, 10, [0, 0, 5, 5], 0.5)])
    assert set(scores.figures.values()) == {-1}


def test_a_found_crowd_is_neither_right_nor_wrong():
    crowd = thing(1, 1, 10, [0, 0, 300, 200], iscrowd=1)
    truth = truth_of([crowd, thing(2, 1, 10, [310, 210, 50, 50])])
    right = found(1, 10, [310, 210, 50, 50], 0.5)
    inside = [found(1, 10, [20 * i, 20 * i, 30, 30], 0.9) for i in range(5)]
    assert score(truth, [right, *inside]).figures["AP"] == pytest.approx(1)
    without = truth_of([thing(2, 1, 10, [310, 210, 50, 50])])
    assert score(without, [right, *inside]).figures["AP"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("ids", [[0, 1, 2], [5, 5, 5], ["a", "b", "a"]])
def test_annotation_ids_do_not_matter(ids):
    truth = truth_of([thing(i, 1, 10, [60 * k, 0, 50, 50]) for k, i in enumerate(ids)])
    scores = score(truth, perfect(truth))
    assert scores.figures["AP"] == pytest.approx(1)
    assert scores.per_class["cat"]["objects"] == 3


@pytest.mark.parametrize("missing", ["absent", "null"])
def test_area_and_iscrowd_may_be_missing(missing):
    truth, results = random_scene(0)
    truth["annotations"] = [a | {"area": a["bbox"][2] * a["bbox"][3]} for a in truth["annotations"] if not a["iscrowd"]]
    expected = by_pycocotools(truth, results)
    for entry in truth["annotations"]:
        if missing == "absent":
            del entry["area"], entry["iscrowd"]
        else:
            entry["area"] = entry["iscrowd"] = None
    assert list(score(truth, results).figures.values()) == pytest.approx(expected)


def test_top_300_looks_at_detections_beyond_the_hundredth():
    boxes = [[(i % 20) * 20, (i // 20) * 20, 15, 15] for i in range(150)]
    truth = truth_of([thing(i + 1, 1, 10, bbox) for i, bbox in enumerate(boxes)])
    truth["images"][0] |= {"width": 400, "height": 300}
    results = [found(1, 10, bbox, 0.9 - i / 1000) for i, bbox in enumerate(boxes)]
    hundred, all_of_them = score(truth, results), score(truth, results, 300)
    assert hundred.figures["AR_100"] == pytest.approx(100 / 150)
    assert hundred.figures["AP"] == pytest.approx(67 / 101)  # recall points 0, 0.01 .. 0.66 are reached
    assert all_of_them.figures["AR_300"] == pytest.approx(1)
    assert all_of_them.figures["AP"] == pytest.approx(1)
    assert "AR_100" not in all_of_them.figures


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_limit_never_finds_less(seed):
    truth, results = random_scene(seed)
    hundred, more = score(truth, results).figures, score(truth, results, 300).figures
    assert more["AR_300"] >= hundred["AR_100"]
    assert more["AP"] >= hundred["AP"] - 1e-12


@pytest.mark.parametrize(("limit", "expected"), [(1, 0.2), (3, 0.6), (10, 1.0)])
def test_a_limit_below_ten_is_kept(limit, expected):
    boxes = [[60 * i, 0, 50, 50] for i in range(5)]
    truth = truth_of([thing(i + 1, 1, 10, bbox) for i, bbox in enumerate(boxes)])
    results = [found(1, 10, bbox, 0.9 - i / 10) for i, bbox in enumerate(boxes)]
    figures = score(truth, results, limit).figures
    assert figures[f"AR_{limit}"] == pytest.approx(expected)
    assert figures["AP50"] == pytest.approx((int(100 * expected) + 1) / 101)


def test_ap_of_each_class_by_hand():
    truth = truth_of(
        [
            thing(1, 1, 10, [0, 0, 50, 50]),
            thing(2, 2, 10, [0, 0, 50, 50]),
            thing(3, 1, 20, [100, 100, 40, 100]),
            thing(4, 1, 20, [200, 0, 50, 50], iscrowd=1),
        ],
        images=2,
    )
    results = [
        found(1, 10, [0, 0, 50, 50], 0.9),
        found(1, 10, [200, 200, 50, 50], 0.8),  # wrong
        found(2, 10, [0, 0, 50, 50], 0.7),
        found(1, 20, [100, 100, 40, 62], 0.9),  # IoU 0.62: right for 0.50, 0.55 and 0.60
    ]
    per_class = score(truth, results).per_class
    # Precision is 1 up to recall 0.5 (51 points), then 2/3 (50 points).
    cat = (51 + 50 * 2 / 3) / 101
    assert per_class["cat"] == pytest.approx({"AP": cat, "AP50": cat, "AP75": cat, "objects": 2})
    assert per_class["dog"] == pytest.approx({"AP": 0.3, "AP50": 1.0, "AP75": 0.0, "objects": 1})


def test_objects_are_counted_in_the_scored_images_only():
    truth = truth_of([thing(i, 1 + i % 2, 10, [0, 0, 50, 50]) for i in range(5)], images=2)
    assert score(truth, [], image_ids=[1]).per_class["cat"]["objects"] == 3


def test_to_coco_results_by_hand():
    boxes = torch.tensor([[1.0, 2.0, 11.0, 22.5], [0.0, 0.0, 5.0, 5.0], [3.0, 3.0, 4.0, 5.0]])
    results = to_coco_results(7, boxes, torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0, 9, 2]), {0: 10, 2: 30})
    assert results == [
        {"image_id": 7, "category_id": 10, "bbox": [1.0, 2.0, 10.0, 20.5], "score": 0.5},
        {"image_id": 7, "category_id": 30, "bbox": [3.0, 3.0, 1.0, 2.0], "score": 0.125},
    ]
    assert json.loads(json.dumps(results)) == results


def test_saved_detections_keep_every_digit_and_score_the_same():
    """Two neighbours in single precision: rounded, they would tie, and the wrong one, listed first, would win."""
    scores = torch.tensor([0.7, 0.7])
    scores[1] = torch.nextafter(scores[1], torch.tensor(1.0))
    boxes = torch.tensor([[200.0, 200, 250, 250], [0.1, 0.2, 50.3, 50.7]])
    results = to_coco_results(1, boxes, scores, torch.tensor([0, 0]), {0: 10})
    truth = truth_of([thing(1, 1, 10, [0.1, 0.2, 50.2, 50.5])])
    assert score(truth, results).figures["AP"] == pytest.approx(1)  # 0.5 if the scores tied
    saved = json.loads(json.dumps(results))
    assert score(truth, saved).figures == score(truth, results).figures
    assert torch.equal(torch.tensor([r["score"] for r in saved]), scores)
    assert torch.equal(torch.tensor([r["bbox"] for r in saved])[:, :2], boxes[:, :2])


def test_unknown_categories_of_results_score_nothing():
    truth = truth_of([thing(1, 1, 10, [0, 0, 50, 50])])
    assert score(truth, [*perfect(truth), found(1, 99, [0, 0, 5, 5], 1.0)]).figures["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"image_id": 1}, "list"),
        ([{"image_id": 1, "category_id": 10, "bbox": [0, 0, 1, 1]}], "detection 0 has no 'score'"),
        ([found(1, 10, [0, 0, 1, 1], 0.5), {"image_id": 1}], "detection 1 has no 'category_id'"),
        (["text"], "detection 0 has no 'image_id'"),
        ([found(55, 10, [0, 0, 1, 1], 0.5)], "detection 0 is of image 55"),
        ([found([1], 10, [0, 0, 1, 1], 0.5)], "detection 0 has the image_id [1]; it must be"),
        ([found(1, 10, [0, 0, 1], 0.5)], "detection 0 must have a bbox of four numbers"),
        ([found(1, 10, None, 0.5)], "detection 0 must have a bbox of four numbers"),
        ([found(1, 10, [0, 0, 1, "x"], 0.5)], "detection 0 must have a bbox of four numbers"),
        ([found(1, 10, [0, 0, 1, 1], None)], "numeric score"),
        ([found(1, [10], [0, 0, 1, 1], 0.5)], "detection 0 has the category_id [10]; it must be"),
        ([found(1, 99, [0, 0, 1, 1], 0.5)], "no detection has a category of 'truth.json': the first has 99 (number)"),
    ],
)
def test_bad_results_are_named(results, said):
    with pytest.raises(UserError, match=re.escape(said)):
        score(truth_of([thing(1, 1, 10, [0, 0, 50, 50])]), results)
