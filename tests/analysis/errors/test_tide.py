"""Types of errors and what they cost: by hand, and against pycocotools on data in which one type was mended."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from analysis.errors.tide import TYPES, average_precision, judge, losses
from tests.analysis.errors.scenery import found, random_data, scenes_from, thing, truth_of

CAT, DOG = 10, 20
A, B = [0, 0, 50, 50], [200, 200, 50, 50]
NEAR_A = [0, 0, 50, 15]  # IoU 0.3 with A
FAR = [300, 20, 40, 40]


def analysed(annotations: list[dict], results: list[dict], max_detections: int = 100):
    truth = truth_of(annotations)
    scenes = scenes_from(truth, results, max_detections)
    verdicts = [judge(s) for s in scenes]
    return losses(scenes, verdicts, len(truth["categories"])), verdicts


def check(annotations, results, ap50, counts, gains, positives, negatives):
    """All that is not named must be zero."""
    got, _ = analysed(annotations, results)
    assert got.ap50 == pytest.approx(ap50)
    assert {k: int(v.sum()) for k, v in got.counts.items()} == dict.fromkeys(TYPES, 0) | counts
    assert got.gains == pytest.approx(dict.fromkeys(TYPES, 0) | gains)
    assert (got.false_positives, got.false_negatives) == pytest.approx((positives, negatives))


def test_perfect_detections_lose_nothing():
    check([thing(CAT, A), thing(DOG, B)], [found(CAT, A, 0.4), found(DOG, B, 0.3)], 1, {}, {}, 0, 0)


def test_classification():
    # The dog's precision is 1/2, the cat is not found: (1/2 + 0) / 2. Mended, both are 1. The cat is no missed object.
    check(
        [thing(CAT, A), thing(DOG, B)],
        [found(DOG, A, 0.95), found(DOG, B, 0.9)],
        0.25,
        {"classification": 1},
        {"classification": 0.75},
        positives=0.25,
        negatives=0.25,
    )


def test_classification_of_an_object_that_is_found_is_removed():
    check(
        [thing(CAT, A), thing(DOG, B)],
        [found(DOG, A, 0.95), found(DOG, B, 0.9), found(CAT, A, 0.1)],
        0.75,
        {"classification": 1},
        {"classification": 0.25},
        positives=0.25,
        negatives=0,
    )


def test_of_two_classification_errors_on_an_object_the_better_one_is_mended():
    # Mended: cat at 0.9 right; the other removed, or the cat would stand at precision 1/2 in another order.
    annotations = [thing(CAT, A), thing(CAT, B)]
    results = [found(DOG, A, 0.9), found(DOG, A, 0.8), found(CAT, B, 0.7)]
    check(annotations, results, 51 / 101, {"classification": 2}, {"classification": 50 / 101}, 0, 50 / 101)


def test_localisation():
    check([thing(CAT, A)], [found(CAT, NEAR_A, 0.9)], 0, {"localisation": 1}, {"localisation": 1}, 0, 1)


def test_localisation_beside_a_found_object_is_removed():
    check(
        [thing(CAT, A)],
        [found(CAT, NEAR_A, 0.95), found(CAT, A, 0.9)],
        0.5,
        {"localisation": 1},
        {"localisation": 0.5},
        positives=0.5,
        negatives=0,
    )


def test_localisation_and_classification_of_one_object_are_mended_each_alone():
    check(
        [thing(CAT, A)],
        [found(CAT, NEAR_A, 0.95), found(DOG, A, 0.9)],
        0,
        {"localisation": 1, "classification": 1},
        {"localisation": 1, "classification": 0.5},  # the loose cat still stands before the mended one
        positives=0,
        negatives=1,
    )


def test_both():
    # Dog: precision 1/2. Nothing that is mended by itself covers the cat: it is missed. Without it the dog is alone.
    check(
        [thing(CAT, A), thing(DOG, B)],
        [found(DOG, NEAR_A, 0.9), found(DOG, B, 0.5)],
        0.25,
        {"both": 1, "missed": 1},
        {"both": 0.25, "missed": 0.25},
        positives=0.25,
        negatives=0.25,
    )


def test_duplicate():
    ap = (51 + 50 * 2 / 3) / 101
    check(
        [thing(CAT, A), thing(CAT, B)],
        [found(CAT, A, 0.9), found(CAT, [0, 0, 50, 45], 0.8), found(CAT, B, 0.7)],
        ap,
        {"duplicate": 1},
        {"duplicate": 1 - ap},
        positives=1 - ap,
        negatives=0,
    )


def test_background():
    results = [found(CAT, FAR, 0.9), found(CAT, A, 0.8)]
    check([thing(CAT, A)], results, 0.5, {"background": 1}, {"background": 0.5}, positives=0.5, negatives=0)


def test_missed():
    gain = 50 / 101
    results = [found(CAT, A, 0.8)]
    check([thing(CAT, A), thing(CAT, B)], results, 51 / 101, {"missed": 1}, {"missed": gain}, 0, gain)


def test_without_detections_all_is_missed():
    check([thing(CAT, A), thing(DOG, B)], [], 0, {"missed": 2}, {"missed": 1}, positives=0, negatives=1)


def test_without_objects_there_is_no_ap_to_lose():
    got, _ = analysed([], [found(CAT, A, 0.9)])
    assert got.ap50 is None and set(got.gains.values()) == {None}
    assert got.false_positives is None and got.false_negatives is None
    assert got.rows()[4] == ("background", 1, None) and got.rows()[6] == ("all false positives", 1, None)


def test_without_anything():
    got, verdicts = analysed([], [])
    assert got.ap50 is None and got.unfound == 0 and len(verdicts) == 1


def test_what_lies_on_a_crowd_is_no_error():
    crowd = thing(CAT, [100, 100, 200, 150], crowd=1)
    inside = [found(CAT, [120, 120, 30, 30], 0.95), found(CAT, [150, 150, 30, 30], 0.9)]
    check([crowd, thing(CAT, A)], [*inside, found(CAT, A, 0.5)], 1, {}, {}, 0, 0)
    # A crowd of cats does not excuse dogs.
    check(
        [crowd, thing(DOG, A)],
        [found(DOG, [120, 120, 30, 30], 0.95), found(DOG, A, 0.5)],
        0.5,
        {"background": 1},
        {"background": 0.5},
        positives=0.5,
        negatives=0,
    )


@pytest.mark.parametrize(
    ("annotations", "detection", "kind"),
    [
        # IoU 0.3 with a dog and 1 with a cat.
        ([thing(DOG, A), thing(CAT, NEAR_A)], found(DOG, NEAR_A, 0.9), "localisation"),
        # A second detection of a dog that is also on a cat.
        ([thing(DOG, A), thing(CAT, A)], found(DOG, A, 0.1), "classification"),
        # IoU 0.1 and just less.
        ([thing(CAT, [0, 0, 100, 10])], found(CAT, [0, 0, 10, 10], 0.9), "localisation"),
        ([thing(CAT, [0, 0, 100, 10])], found(DOG, [0, 0, 10, 10], 0.9), "both"),
        ([thing(CAT, [0, 0, 101, 10])], found(CAT, [0, 0, 10, 10], 0.9), "background"),
        # IoU 0.5 and just less.
        ([thing(CAT, [0, 0, 20, 10])], found(DOG, [0, 0, 10, 10], 0.9), "classification"),
        ([thing(CAT, [0, 0, 21, 10])], found(DOG, [0, 0, 10, 10], 0.9), "both"),
        ([thing(CAT, [0, 0, 21, 10])], found(CAT, [0, 0, 10, 10], 0.9), "localisation"),
        ([thing(CAT, [0, 0, 20, 10])], found(CAT, [0, 0, 10, 10], 0.9), "correct"),
    ],
)
def test_where_types_meet(annotations, detection, kind):
    first = [found(DOG, A, 0.5)] if kind == "classification" and detection["score"] == 0.1 else []
    _, (verdict,) = analysed(annotations, [*first, detection])
    assert verdict.kinds[len(first)] == kind


def test_errors_are_counted_by_class():
    got, _ = analysed([thing(CAT, A), thing(DOG, B)], [found(DOG, A, 0.9), found(DOG, FAR, 0.8), found(CAT, FAR, 0.7)])
    assert got.counts["classification"].tolist() == [0, 1]
    assert got.counts["background"].tolist() == [1, 1]
    assert got.counts["missed"].tolist() == [0, 1]


def test_detections_beyond_the_limit_are_no_errors():
    results = [found(CAT, A, 0.9), *(found(CAT, FAR, 0.8 - i / 100) for i in range(5))]
    assert analysed([thing(CAT, A)], results)[0].counts["background"].sum() == 5
    assert analysed([thing(CAT, A)], results, max_detections=3)[0].counts["background"].sum() == 2


def test_at_equal_scores_order_counts_as_in_pycocotools():
    for results in ([found(CAT, A, 0.5), found(CAT, FAR, 0.5)], [found(CAT, FAR, 0.5), found(CAT, A, 0.5)]):
        got, _ = analysed([thing(CAT, A)], results)
        assert got.ap50 == pytest.approx(ap50_by_pycocotools(truth_of([thing(CAT, A)]), results))


def test_average_precision_by_hand():
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2) == pytest.approx(
        (51 + 50 * 2 / 3) / 101
    )
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 3) == 0
    assert average_precision(np.array([0.1, 0.9]), np.array([True, False]), 1) == pytest.approx(0.5)


def ap50_by_pycocotools(truth: dict, results: list[dict]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][0, :, :, 0, 2]
    return float(precision[precision > -1].mean())


def mended_data(truth: dict, results: list[dict], kind: str, scenes, verdicts) -> tuple[dict, list[dict]]:
    """The files as they were if one type had been mended by hand, detection by detection."""
    category = [c["id"] for c in truth["categories"]]
    new, missing = [], []
    for scene, verdict in zip(scenes, verdicts):
        image = scene.image.id
        done = set(scene.matches.tolist())
        for d in range(len(scene.scores)):
            entry = found(category[scene.classes[d]], scene.boxes[d].tolist(), float(scene.scores[d]), image)
            target = int(verdict.targets[d])
            if verdict.kinds[d] != kind:
                new.append(entry)
            elif target >= 0 and target not in done:
                done.add(target)
                box = scene.truth_boxes[target].tolist()
                new.append(entry | {"category_id": category[scene.truth_classes[target]], "bbox": box})
        missing += [(image, scene.truth_boxes[t].tolist()) for t in np.flatnonzero(verdict.missed)]
    if kind == "missed":
        kept = [a for a in truth["annotations"] if (a["image_id"], a["bbox"]) not in missing]
        assert len(kept) == len(truth["annotations"]) - len(missing)
        return truth | {"annotations": kept}, results
    return truth, new


@pytest.mark.parametrize("seed", range(6))
def test_ap_and_gains_are_those_of_pycocotools_on_mended_data(seed):
    truth, results = random_data(seed)
    scenes = scenes_from(truth, results)
    verdicts = [judge(s) for s in scenes]
    got = losses(scenes, verdicts, 3)
    base = ap50_by_pycocotools(truth, results)
    assert 0.05 < base < 0.95
    assert got.ap50 == pytest.approx(base, abs=1e-12)
    for kind in TYPES:
        assert got.counts[kind].sum() > 0, kind
        gain = ap50_by_pycocotools(*mended_data(truth, results, kind, scenes, verdicts)) - base
        assert got.gains[kind] == pytest.approx(gain, abs=1e-9), kind
    assert max(got.gains.values()) > 0.01


@pytest.mark.parametrize("seed", range(6, 12))
def test_every_wrong_detection_and_every_object_has_one_fate(seed):
    truth, results = random_data(seed)
    scenes = scenes_from(truth, results)
    verdicts = [judge(s) for s in scenes]
    got = losses(scenes, verdicts, 3)
    kinds = np.concatenate([v.kinds for v in verdicts])
    assert len(kinds) == len(results) and set(kinds) <= {*TYPES, "correct", "ignored"}
    for scene, verdict in zip(scenes, verdicts):
        assert ((verdict.kinds == "correct") == (scene.matches >= 0)).all()
        assert ((verdict.targets >= 0) == np.isin(verdict.kinds, ["classification", "localisation"])).all()
        covered = {t for t in verdict.targets if t >= 0} | {m for m in scene.matches if m >= 0}
        assert set(np.flatnonzero(verdict.missed)) == set(range(len(scene.truth_classes))) - covered
    objects = sum(not a["iscrowd"] for a in truth["annotations"])
    assert got.unfound == objects - (kinds == "correct").sum()
    assert min([*got.gains.values(), got.false_positives, got.false_negatives]) >= 0
    # To remove all of several types gains no less than to remove those of one.
    assert got.false_positives >= max(got.gains[k] for k in ("both", "duplicate", "background")) - 1e-12
