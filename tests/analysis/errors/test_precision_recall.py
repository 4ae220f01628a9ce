import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from analysis.errors.crowding import by_object_count
from analysis.errors.precision_recall import GRID, precision_recall, threshold_curve, threshold_curves
from analysis.errors.worst import worst_images
from datasets.accumulate import Tables, accumulate
from datasets.evaluation import evaluate_detections, match_detections
from datasets.metrics import limits_of
from tests.analysis.errors.scenery import found, random_data, read, scenes_from, thing, truth_of

CAT, DOG = 10, 20
A, B, FAR = [0, 0, 50, 50], [200, 200, 50, 50], [300, 20, 40, 40]


def tables_from(truth: dict, results: list[dict]) -> Tables:
    return accumulate(match_detections(read(truth), results), limits_of(100))


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_of_a_curve_is_the_ap_of_its_class(seed):
    truth, results = random_data(seed)
    curves = precision_recall(tables_from(truth, results))
    per_class = list(evaluate_detections(read(truth), results).per_class.values())
    for name in ("AP", "AP50", "AP75"):
        assert curves[name].shape == (3, 101)
        assert curves[name].mean(1) == pytest.approx([c[name] for c in per_class])
        assert (np.diff(curves[name]) <= 1e-12).all()  # precision never rises with recall


def test_a_curve_by_hand():
    truth = truth_of([thing(CAT, A), thing(CAT, B)])
    results = [found(CAT, A, 0.9), found(CAT, FAR, 0.8), found(CAT, [200, 200, 50, 30], 0.7)]  # IoU 1, 0, 0.6
    curves = precision_recall(tables_from(truth, results))
    assert curves["AP50"][0] == pytest.approx([1] * 51 + [2 / 3] * 50)
    assert curves["AP75"][0] == pytest.approx([1] * 51 + [0] * 50)
    assert curves["AP"][0] == pytest.approx([1] * 51 + [0.3 * 2 / 3] * 50)  # right at 0.5, 0.55 and 0.6
    assert np.isnan(curves["AP"][1]).all()  # no dogs


def test_thresholds_by_hand():
    annotations = [thing(CAT, A), thing(CAT, B), thing(DOG, [100, 0, 50, 50])]
    results = [found(CAT, A, 0.9), found(CAT, FAR, 0.6), found(CAT, B, 0.3), found(DOG, FAR, 0.5)]
    scenes = scenes_from(truth_of(annotations), results)
    (cat, dog), both = threshold_curves(scenes, 2), threshold_curve(scenes)
    at = {round(float(t), 2): i for i, t in enumerate(GRID)}
    assert cat.precision[[at[0.2], at[0.5], at[0.7]]] == pytest.approx([2 / 3, 1 / 2, 1])
    assert cat.recall[[at[0.2], at[0.5], at[0.7]]] == pytest.approx([1, 1 / 2, 1 / 2])
    assert cat.f1[[at[0.2], at[0.5], at[0.7]]] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert np.isnan(cat.precision[at[0.95]]) and cat.recall[at[0.95]] == 0 == cat.f1[at[0.95]]
    assert (cat.best.threshold, cat.best.precision, cat.best.recall, cat.best.f1) == pytest.approx(
        (0.3, 2 / 3, 1, 4 / 5)
    )
    assert dog.best is None and not dog.recall.any()
    assert both.recall[at[0.2]] == pytest.approx(2 / 3) and both.precision[at[0.2]] == pytest.approx(2 / 4)


def test_a_score_on_a_threshold_is_kept():
    curve = threshold_curve(scenes_from(truth_of([thing(CAT, A)]), [found(CAT, A, 0.25)]))
    assert curve.recall[25] == 1 and curve.recall[26] == 0


def test_equal_scores_are_kept_together():
    results = [found(CAT, A, 0.5), found(CAT, FAR, 0.5)]
    best = threshold_curve(scenes_from(truth_of([thing(CAT, A)]), results)).best
    assert (best.precision, best.recall) == (0.5, 1)


def test_of_two_equal_f1_the_higher_threshold_is_best():
    results = [found(CAT, A, 0.9), found(CAT, FAR, 0.6), found(CAT, [250, 100, 40, 40], 0.5), found(CAT, B, 0.4)]
    curve = threshold_curve(scenes_from(truth_of([thing(CAT, A), thing(CAT, B)]), results))
    assert curve.best.f1 == pytest.approx(2 / 3) and curve.best.threshold == 0.9


def test_crowds_are_neither_objects_nor_mistakes():
    annotations = [thing(CAT, A), thing(CAT, [100, 100, 200, 150], crowd=1)]
    curve = threshold_curve(
        scenes_from(truth_of(annotations), [found(CAT, A, 0.5), found(CAT, [120, 120, 30, 30], 0.9)])
    )
    assert (curve.best.precision, curve.best.recall) == (1, 1)


def test_without_objects_there_is_no_curve():
    scenes = scenes_from(truth_of([thing(CAT, A)]), [found(DOG, A, 0.5)])
    cat, dog = threshold_curves(scenes, 2)
    assert dog is None and cat.best is None
    assert threshold_curve(scenes).best is None


def run_of(truth: dict, results: list[dict]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        run.evaluate()
    return run


@pytest.mark.parametrize("seed", range(3))
def test_filtering_detections_first_gives_the_same(seed):
    """pycocotools, shown only what reaches the threshold, finds as many."""
    truth, results = random_data(seed)
    curve = threshold_curve(scenes_from(truth, results))
    for i in (20, 50, 80):
        kept = [r for r in results if r["score"] >= GRID[i]]
        run = run_of(truth, kept)
        entries = [e for e in run.evalImgs if e and list(e["aRng"]) == list(run.params.areaRng[0])]
        hits = sum(((e["dtMatches"][0] > 0) & ~e["dtIgnore"][0]).sum() for e in entries)
        counted = sum((~e["dtIgnore"][0]).sum() for e in entries)
        objects = sum(not a["iscrowd"] for a in truth["annotations"])
        assert curve.precision[i] == pytest.approx(hits / counted) and curve.recall[i] == pytest.approx(hits / objects)


def test_ap_by_number_of_objects():
    annotations = [
        *(thing(CAT, [60 * i, 0, 50, 50], image=1) for i in range(5)),
        thing(CAT, A, image=2),
        thing(CAT, [100, 100, 200, 150], image=3, crowd=1),
    ]
    truth = truth_of(annotations, images=4)
    results = [found(CAT, A, 0.9, image=1), found(CAT, A, 0.8, image=2), found(CAT, FAR, 0.7, image=2)]
    results += [found(CAT, FAR, 0.6, image=4), found(CAT, FAR, 0.4, image=4)]
    bins = by_object_count(match_detections(read(truth), results), scenes_from(truth, results), threshold=0.5)
    assert [(b.name, b.images, b.objects) for b in bins] == [("0", 2, 0), ("1", 1, 1), ("4-7", 1, 5)]
    assert [b.figures["AP50"] for b in bins] == pytest.approx([-1, 1, 21 / 101])
    assert [b.spurious for b in bins] == [0.5, 1, 0]


def test_every_number_of_objects_has_a_bin():
    annotations = [thing(CAT, [i, 0, 5, 5], image=n) for n in range(1, 21) for i in range(n)]
    truth = truth_of(annotations, images=20)
    bins = by_object_count(match_detections(read(truth), []), scenes_from(truth, []), 0.5)
    assert [(b.name, b.images) for b in bins] == [("1", 1), ("2-3", 2), ("4-7", 4), ("8-15", 8), ("16+", 5)]
    assert sum(b.objects for b in bins) == len(annotations)


def test_worst_images_by_hand():
    annotations = [thing(CAT, A, image=1), thing(CAT, A, image=2), thing(CAT, A, image=3), thing(CAT, B, image=3)]
    truth = truth_of(annotations, images=4)
    results = [
        found(CAT, A, 0.9, image=1),
        found(CAT, A, 0.4, image=2),  # too unsure to count as found
        found(CAT, FAR, 0.7, image=2),
        found(CAT, A, 0.9, image=3),
        found(CAT, B, 0.9, image=3),
        found(CAT, FAR, 0.8, image=3),
        found(DOG, FAR, 0.3, image=4),  # too unsure to count as wrong
    ]
    ranks = worst_images(scenes_from(truth, results), 0.5, 8)
    assert [(r.index, r.unfound, r.wrong) for r in ranks] == [(1, 1, 1), (2, 0, 1)]
    assert [r.penalty for r in ranks] == pytest.approx([1.7, 0.8])
    assert [r.index for r in worst_images(scenes_from(truth, results), 0.5, 1)] == [1]
    assert worst_images(scenes_from(truth, results), 0.5, 0) == []


@pytest.mark.parametrize("seed", range(3))
def test_images_of_a_bin_score_as_if_they_were_alone(seed):
    truth, results = random_data(seed, images=20)
    scenes = scenes_from(truth, results, 10)
    for found_bin in by_object_count(match_detections(read(truth), results, 10), scenes, 0.5):
        low, _, high = found_bin.name.partition("-")
        within = range(int(low.rstrip("+")), 99 if low.endswith("+") else int(high or low) + 1)
        chosen = [s.image.id for s in scenes if len(s.truth_classes) in within]
        figures = evaluate_detections(read(truth), results, 10, chosen, "pycocotools").figures
        assert found_bin.images == len(chosen) and found_bin.figures == {k: figures[k] for k in ("AP", "AP50", "AP75")}
