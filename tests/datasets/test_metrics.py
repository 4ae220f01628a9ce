import copy

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets import metrics
from datasets.accumulate import Tables, accumulate
from datasets.coco import from_coco
from datasets.evaluation import evaluate_detections, match_detections
from datasets.metrics import Metric, average_precision, check_figure, figures_of
from tests.datasets.test_evaluation import NAMES, found, random_scene, thing, truth_of
from util.errors import UserError

TABLES = """\
AP      AP50   AP75  AP_small  AP_medium  AP_large
-----  -----  -----  --------  ---------  --------
0.750  1.000  0.500         -      0.750         -
AR_1   AR_10  AR_100  AR_small  AR_medium  AR_large
-----  -----  ------  --------  ---------  --------
0.750  0.750   0.750         -      0.750         -

class     AP   AP50   AP75  objects
-----  -----  -----  -----  -------
cat    1.000  1.000  1.000        1
dog    0.500  1.000  0.000        1
cow        -      -      -        0"""


def scored(limit: int = 100):
    """A cat found, and a dog whose overlap is 0.72: right at five of ten IoUs."""
    truth = truth_of([thing(1, 1, 10, [0, 0, 50, 50]), thing(2, 1, 20, [100, 0, 50, 50])], names=("cat", "dog", "cow"))
    results = [found(1, 10, [0, 0, 50, 50], 0.9), found(1, 20, [100, 0, 50, 36], 0.9)]
    return evaluate_detections(from_coco(truth, "truth.json"), results, limit)


def test_tables_as_they_are_printed():
    assert scored().text() == TABLES


def test_a_figure_by_name_and_that_of_a_class():
    scores = scored()
    assert list(scores.figures) == NAMES
    assert scores.value("AP") == pytest.approx(0.75) and scores.value("AR_100") == pytest.approx(0.75)
    assert [scores.value(f"{name}/dog") for name in ("AP", "AP50", "AP75")] == pytest.approx([0.5, 1, 0])
    assert scores.value("AP/cow") == -1
    assert list(scores.to_dict()) == ["figures", "per_class"] and scores.to_dict()["figures"]["AP"] == scores.value(
        "AP"
    )


@pytest.mark.parametrize(("limit", "names"), [(300, ["AR_1", "AR_10", "AR_300"]), (3, ["AR_1", "AR_3"]), (1, ["AR_1"])])
def test_recalls_are_named_by_the_limits(limit, names):
    scores = scored(limit)
    assert [n for n in scores.figures if n.startswith("AR") and n[3:].isdigit()] == names
    assert scores.tables == [NAMES[:6], [*names, *NAMES[9:]]]
    assert scores.text().split().count("AR_1") == 1


def tables_from(truth: dict, results: list[dict]) -> Tables:
    return accumulate(match_detections(from_coco(truth, "truth.json"), results), metrics.limits_of(100))


@pytest.mark.parametrize("iou", [0.5, 0.6, 0.75, 0.8])
def test_precision_at_an_iou_is_that_of_an_evaluation_at_this_iou_alone(iou):
    truth, results = random_scene(1)
    value = average_precision(iou)(tables_from(truth, results), metrics.EVERY_CLASS)
    coco = COCO()
    coco.dataset = copy.deepcopy({"info": {}, **truth})
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
    run.params.iouThrs = np.array([iou])
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, 2]
    assert 0.005 < value == pytest.approx(precision[precision > -1].mean(), abs=1e-12)


def test_the_mean_of_classes_is_the_figure():
    truth, results = random_scene(2)
    tables = tables_from(truth, results)
    per_class = [metrics.figures_of_class(tables, k) for k in range(3)]
    for name in ("AP", "AP50", "AP75"):
        assert np.mean([c[name] for c in per_class]) == pytest.approx(figures_of(tables)[name])


def test_a_metric_is_added_by_a_line(monkeypatch):
    added = Metric("AP60", "precision", average_precision(iou=0.6), of_class=True)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, added))
    scores = scored()
    assert list(scores.figures) == [*NAMES, "AP60"]
    assert scores.value("AP60") == pytest.approx(1) and scores.value("AP60/dog") == pytest.approx(1)
    lines = scores.text().splitlines()
    assert lines[0].split() == [*NAMES[:6], "AP60"] and lines[3].split() == NAMES[6:]
    assert lines[7].split() == ["class", "AP", "AP50", "AP75", "AP60", "objects"]
    check_figure("AP60/dog", "train.best_metric", ["dog"])


@pytest.mark.parametrize(
    "name", ["AP", "AP50", "AP_small", "AR_1", "AR_100", "AR_large", "AP/a/b", "AP75/dog", "AP50/AP"]
)
def test_figures_that_there_are(name):
    check_figure(name, "train.best_metric", ["dog", "a/b", "AP"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AP_smal", ["'AP_smal'", "did you mean 'AP_small'"]),
        ("ap75", ["did you mean 'AP75'"]),
        ("AP/dgo", ["did you mean 'AP/dog'"]),
        ("AP_small/dog", ["'AP_small/dog'", "did you mean"]),
        ("AR_300", ["did you mean 'AR_100'"]),
        ("loss", ["; there are AP, AP50, AP75, AP_small", "AR_large", "(dog, cat)", "AP/dog, AP50/dog, AP75/dog"]),
        ("", ["is ''; there are AP"]),
    ],
)
def test_figures_that_there_are_not(name, said):
    with pytest.raises(UserError) as raised:
        check_figure(name, "train.best_metric", ["dog", "cat"])
    assert str(raised.value).startswith("train.best_metric is ")
    for part in [*said, *NAMES]:
        assert part in str(raised.value)
