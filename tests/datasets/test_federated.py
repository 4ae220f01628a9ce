"""LVIS's protocol beside the `lvis` package, on made-up data, and by hand."""

import copy
import pickle
import sys
from multiprocessing import context
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from datasets.class_lists import ClassLists
from datasets.coco import from_coco, to_coco
from datasets.dataset import CocoDetection
from datasets.evaluation import evaluate_detections
from datasets.federated import best_of_images
from datasets.fix import mend
from datasets.id_column import IdColumn
from datasets.metrics import check_figure
from datasets.protocol import protocol_for
from tests.datasets.test_evaluation import found, thing, truth_of
from tests.util.test_shared import Sent
from util.errors import UserError

NAMES = [
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf"),
    *("AR_300", "AR_small", "AR_medium", "AR_large"),
]


def lvis_scene(seed: int, images: int = 9, classes: int = 12, spread: int = 60) -> tuple[dict, list[dict]]:
    """Objects of some classes in each image, some of them not exhaustively listed, and a few negatives; detections near
    objects and anywhere, of any class, with tied scores; in two images more than 300.
    """
    rng = np.random.default_rng(seed)
    ids = 3 * np.arange(classes) + 2
    annotations, results, entries = [], [], []
    for image in range(1, images + 1):
        positive = rng.choice(ids, 3, replace=False)
        negative = rng.choice(np.setdiff1d(ids, positive), 3, replace=False)
        partly = rng.choice(positive, int(rng.integers(0, 3)), replace=False)
        for _ in range(int(rng.integers(0, 8)) if image > 1 else 0):
            box = [float(v) for v in (*rng.uniform(0, 150, 2), *rng.uniform(8, 200, 2))]
            kind = int(rng.choice(positive))
            annotations.append(thing(len(annotations) + 1, image, kind, box, area=float(box[2] * box[3] * 0.7)))
            for _ in range(rng.integers(0, 4)):
                moved = [float(v) for v in np.array(box) * rng.uniform(0.85, 1.15, 4)]
                results.append(found(image, kind, moved, float(rng.integers(8, 20)) / 20))
        for _ in range(400 if image % 4 == 0 else spread):
            box = [float(v) for v in (*rng.uniform(0, 200, 2), *rng.uniform(5, 90, 2))]
            results.append(found(image, int(rng.choice(ids)), box, float(rng.integers(0, 14)) / 20))
        # Some of a class that the file does not list: they count for the limit of 300, as in the package.
        results += [found(image, 1000, [0.0, 0.0, 9.0, 9.0], 0.55)] * 5
        entry = {"id": image, "file_name": f"{image}.jpg", "width": 400, "height": 400}
        lists = {"neg_category_ids": negative.tolist(), "not_exhaustive_category_ids": partly.tolist()}
        entries.append(entry | lists)
    order = rng.permutation(len(results))
    categories = [{"id": int(k), "name": f"c{k}", "frequency": "rcf"[i % 3]} for i, k in enumerate(ids)]
    truth = {"images": entries, "categories": categories, "annotations": annotations}
    return truth, [results[i] for i in order]


@pytest.fixture
def by_lvis(monkeypatch):
    """Scores of the `lvis` package, which needs what NumPy no longer has, and cv2 to draw, which nothing here does."""
    if "cv2" not in sys.modules:
        monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    monkeypatch.setattr(np, "float", float, raising=False)
    lvis = pytest.importorskip("lvis")

    def score(truth: dict, results: list[dict], most: int = 300) -> list[float]:
        of_file = lvis.LVIS.__new__(lvis.LVIS)  # which reads files alone
        of_file.logger = lvis.eval.logging.getLogger("lvis")
        of_file.dataset = copy.deepcopy(truth)
        of_file._create_index()
        run = lvis.LVISEval(of_file, lvis.LVISResults(of_file, copy.deepcopy(results), most), "bbox")
        run.run()
        return [float(value) for value in run.get_results().values()]

    return score


@pytest.mark.parametrize("most", [300, 40])
@pytest.mark.parametrize("seed", range(3))
def test_all_figures_are_those_of_the_lvis_package_to_the_last_digit(by_lvis, seed, most):
    truth, results = lvis_scene(seed)
    scores = evaluate_detections(from_coco(truth, "lvis.json"), results, None if most == 300 else most)
    assert list(scores.figures) == [name.replace("300", str(most)) for name in NAMES]
    expected = by_lvis(truth, results, most)
    assert all(0.005 < value < 0.95 for value in expected)
    assert list(scores.figures.values()) == expected
    coco = evaluate_detections(from_coco(truth, "lvis.json"), results, most, protocol="coco").figures
    assert coco["AP"] != pytest.approx(expected[0], abs=1e-3)  # these data tell the protocols apart


def test_of_nothing_found_in_looked_for_classes_the_figures_are_those_of_the_package(by_lvis):
    truth, results = lvis_scene(7)
    negative = {(i["id"], k) for i in truth["images"] for k in i["neg_category_ids"]}
    wrong = [r for r in results if (r["image_id"], r["category_id"]) in negative]
    assert list(evaluate_detections(from_coco(truth, "x"), wrong).figures.values()) == by_lvis(truth, wrong)


CAT, DOG, COW = 10, 20, 30
HERE, THERE = [0.0, 0.0, 50.0, 50.0], [100.0, 100.0, 50.0, 50.0]


def federated(negatives: list, partly: list, frequencies: str = "rcf", extra: tuple = ()) -> dict:
    """An image with a cat."""
    truth = truth_of([thing(1, 1, CAT, HERE), *extra], names=("cat", "dog", "cow"))
    truth["images"][0] |= {"neg_category_ids": negatives, "not_exhaustive_category_ids": partly}
    truth["categories"] = [c | {"frequency": f} for c, f in zip(truth["categories"], frequencies)]
    return truth


@pytest.mark.parametrize(
    ("negatives", "partly", "expected"),
    [
        # A better-scored false cat: precision 1/2 at all recalls. A cow's own AP has no objects.
        ([], [], 0.5),
        ([DOG], [], 0.5),
        ([], [CAT], 1.0),  # not exhaustively listed: the false cat may be one
        ([DOG], [DOG], 0.5),  # of another class
    ],
)
def test_a_detection_of_a_class_with_unlisted_objects_is_not_wrong(negatives, partly, expected):
    results = [found(1, CAT, THERE, 0.9), found(1, CAT, HERE, 0.8)]
    scores = evaluate_detections(from_coco(federated(negatives, partly), "x.json"), results)
    assert scores.figures["AP"] == pytest.approx(expected)
    assert (scores.figures["APr"], scores.figures["APc"]) == (pytest.approx(expected), -1)


@pytest.mark.parametrize(("negatives", "expected"), [([], 1.0), ([DOG], 0.5)])
def test_only_a_class_that_was_looked_for_can_be_wrong(negatives, expected):
    truth = federated(negatives, [])
    truth["images"].append(truth["images"][0] | {"id": 2, "file_name": "2.jpg", "neg_category_ids": []})
    truth["annotations"].append(thing(2, 2, DOG, HERE))
    results = [found(1, CAT, HERE, 0.9), found(1, DOG, THERE, 0.9), found(2, DOG, HERE, 0.8)]
    scores = evaluate_detections(from_coco(truth, "x.json"), results)
    assert scores.value("AP/dog") == pytest.approx(expected) and scores.value("APc") == pytest.approx(expected)


def test_the_limit_is_of_an_image_and_comes_before_all_else():
    truth = federated([], [])
    results = [found(1, COW, THERE, 0.9)] * 300 + [found(1, CAT, HERE, 0.8)]  # nobody looked for cows
    assert evaluate_detections(from_coco(truth, "x.json"), results).figures["AP"] == 0
    assert evaluate_detections(from_coco(truth, "x.json"), results, 301).figures["AP"] == pytest.approx(1)
    images, scores = np.array([1, 0, 1, 1, 0]), np.array([0.5, 0.1, 0.9, 0.5, 0.2])
    assert best_of_images(images, scores, 2).tolist() == [True, True, True, False, True]
    assert best_of_images(images, scores, 1).tolist() == [False, False, True, False, True]


def test_a_crowd_stays_neither_right_nor_wrong():
    truth = federated([], [], extra=(thing(2, 1, CAT, THERE, iscrowd=1),))
    results = [found(1, CAT, THERE, 0.9), found(1, CAT, THERE, 0.85), found(1, CAT, HERE, 0.8)]
    assert evaluate_detections(from_coco(truth, "x.json"), results).figures["AP"] == pytest.approx(1)


def test_the_protocol_follows_the_file():
    whole, plain = from_coco(federated([DOG], []), "x.json"), from_coco(truth_of([thing(1, 1, CAT, HERE)]), "y.json")
    assert [protocol_for(whole, p) for p in ("auto", "coco", "lvis")] == ["lvis", "coco", "lvis"]
    assert [protocol_for(plain, p) for p in ("auto", "coco")] == ["coco", "coco"]
    with pytest.raises(UserError, match=r"'y.json' do not all have .*neg_category_ids.*--data.protocol coco"):
        protocol_for(plain, "lvis")
    without = federated([DOG], [])
    without["categories"] = [{k: v for k, v in c.items() if k != "frequency"} for c in without["categories"]]
    assert [protocol_for(from_coco(without, "z"), p) for p in ("auto", "lvis")] == ["coco", "lvis"]
    figures = evaluate_detections(from_coco(without, "z"), [found(1, CAT, HERE, 1.0)], protocol="lvis").figures
    assert (figures["AP"], figures["APr"], figures["APf"]) == (pytest.approx(1), -1, -1)


@pytest.mark.parametrize("scorer", ["pycocotools", "faster-coco-eval"])
def test_a_library_is_refused_by_this_protocol(scorer):
    annotations = from_coco(federated([DOG], []), "x.json")
    with pytest.raises(UserError, match=f"--scorer {scorer} is for COCO's protocol"):
        evaluate_detections(annotations, [found(1, CAT, HERE, 1.0)], scorer=scorer)
    figures = evaluate_detections(annotations, [found(1, CAT, HERE, 1.0)], scorer=scorer, protocol="coco").figures
    assert figures["AP"] == pytest.approx(1) and "APr" not in figures


def test_tables_have_the_figures_of_the_protocol():
    text = evaluate_detections(from_coco(federated([DOG], []), "x"), [found(1, CAT, HERE, 1.0)]).text().splitlines()
    assert text[0].split() == NAMES[:9] and text[3].split() == NAMES[9:]
    check_figure("APr", "train.best_metric", ["cat"], protocol="lvis")
    check_figure("AR_300", "train.best_metric", ["cat"], protocol="lvis")
    for name, protocol in (("APr", "coco"), ("AR_100", "lvis"), ("AR_1", "lvis")):
        with pytest.raises(UserError, match=r"train.best_metric is"):
            check_figure(name, "train.best_metric", ["cat"], protocol=protocol)


def test_what_a_file_says_comes_back():
    truth = federated([DOG], [CAT])
    again = from_coco(to_coco(from_coco(truth, "x.json")), "x.json")
    assert again.federated == from_coco(truth, "x.json").federated
    assert (again.federated.negatives, again.federated.not_exhaustive) == ({1: (DOG,)}, {1: (CAT,)})
    assert again.federated.frequencies == {CAT: "r", DOG: "c", COW: "f"}
    assert "frequency" not in str(to_coco(from_coco(truth_of([]), "y.json")))


def test_classes_in_lists_are_read_by_their_types():
    truth = federated([str(DOG), 99], [f"{CAT}"])
    read = from_coco(truth, "x.json")
    assert (read.federated.negatives, read.federated.not_exhaustive) == ({1: (DOG, 99)}, {1: (CAT,)})
    assert "'20' (text) is taken for the id 20 (number) of the categories" in read.remarks[0]


def test_mending_brings_the_lists_to_the_new_ids():
    truth = federated(["dog", "nobody"], [CAT])
    truth["categories"][1]["id"] = "dog"
    mended, changes = mend(truth, {})
    new = mended["categories"][1]["id"]
    assert mended["images"][0]["neg_category_ids"] == [new, "nobody"]
    assert mended["images"][0]["not_exhaustive_category_ids"] == [CAT]
    assert truth["images"][0]["neg_category_ids"] == ["dog", "nobody"]  # is not changed
    assert [c.detail for c in changes if c.kind == "neg_category_ids changed"] == [f"it is now [{new}, 'nobody']"]


def test_workers_get_the_lists_and_share_large_ones(tmp_path):
    """What is pickled for one is little beside lists as long as those of LVIS's training images."""
    dataset = CocoDetection.from_annotations(tmp_path, from_coco(federated([DOG], [CAT]), "x.json"))
    listed = pickle.loads(pickle.dumps(dataset)).annotations.federated
    assert listed == dataset.annotations.federated and listed.negatives == {1: (DOG,)}
    lists = ClassLists(IdColumn(np.arange(5000)), np.full(5000, 70), IdColumn(np.arange(350_000) % 1203))
    context.set_spawning_popen(SimpleNamespace(DupFd=Sent, duplicate_for_child=lambda descriptor: descriptor))
    try:
        sent = pickle.dumps(lists)
        worker = pickle.loads(sent)
    finally:
        context.set_spawning_popen(None)
    assert len(sent) < 80_000 < lists.classes.numbers.nbytes
    assert worker[4999] == tuple(range(1203))[349_930 % 1203 :][:70] == lists[4999] and 5000 not in worker


def test_lists_that_cannot_be_used():
    partial = federated([DOG], [])
    partial["images"].append({"id": 2, "file_name": "2.jpg"})
    read = from_coco(partial, "x.json")
    assert read.federated is None and "1 of 2 images have neg_category_ids" in read.remarks[0]
    with pytest.raises(
        UserError, match=r"image 1 in 'x.json' has the neg_category_ids 7 \(number\); it must be a list"
    ):
        from_coco(federated(7, []), "x.json")  # type: ignore[arg-type]
    odd = federated([DOG], [], "rcq")
    assert "1 of 3 categories have no frequency" in from_coco(odd, "x.json").remarks[0]
