"""Our matching and accumulation beside pycocotools' (to the last digit) and faster-coco-eval's, on the same columns."""

import numpy as np
import pytest
from pycocotools import mask

from datasets import greedy
from datasets.accumulate import accumulate
from datasets.annotations import CategoryEntry, ImageEntry
from datasets.coco import from_coco
from datasets.columns import Boxes, Columns
from datasets.evaluation import match_detections, summarize
from datasets.greedy import match, overlaps, place_in_run
from datasets.libraries import tables_by
from datasets.metrics import limits_of
from tests.datasets.test_evaluation import found, thing, truth_of


def random_boxes(rng: np.random.Generator, count: int, images: int, classes: int, side: float) -> Boxes:
    boxes = np.concatenate([rng.uniform(0, 150, (count, 2)), rng.uniform(1, side, (count, 2))], 1)
    rows = rng.integers(0, images, count), rng.integers(0, classes, count)
    return Boxes(*rows, boxes, boxes[:, 2] * boxes[:, 3])


def random_columns(
    seed: int, images: int = 10, classes: int = 4, objects: int = 60, found: int = 400, whole: bool = False
) -> Columns:
    """Objects of all sizes, some crowds; detections near them and anywhere, with few different scores.

    The last image has no objects and the first no detections; the last class has no objects.

    Args:
        seed: of the random numbers.
        images, classes, objects, found: how many there are.
        whole: boxes on a coarse grid, so that overlaps are often equal, and often a threshold.
    """
    rng = np.random.default_rng(seed)
    truth = random_boxes(rng, objects, images - 1, classes - 1, 140.0)
    dets = random_boxes(rng, found, images, classes, 140.0)
    near = rng.random(found) < 0.7
    of = rng.integers(0, objects, found)
    dets.boxes[near] = np.abs(truth.boxes[of] * rng.uniform(0.8, 1.25, (found, 4)))[near]
    dets.images[near] = truth.images[of][near]
    dets.classes[near] = np.where(rng.random(found) < 0.8, truth.classes[of], dets.classes)[near]
    dets.images[dets.images == 0] = images - 1
    if whole:
        for boxes in (truth.boxes, dets.boxes):
            boxes[:] = np.maximum(np.round(boxes / 10) * 10, 10)
    areas = truth.boxes[:, 2] * truth.boxes[:, 3]
    # Areas of segments are smaller than those of boxes; some lie on the border between two sizes.
    truth.areas[:] = np.where(rng.random(objects) < 0.2, rng.choice([32.0**2, 96.0**2], objects), areas * 0.7)
    dets.areas[:] = dets.boxes[:, 2] * dets.boxes[:, 3]
    return Columns(
        [ImageEntry(i, f"{i}.png") for i in range(images)],
        [CategoryEntry(k, f"class {k}") for k in range(classes)],
        truth,
        rng.random(objects) < 0.15,
        dets,
        rng.integers(0, 12, found) / 12,
    )


CASES = [
    *({"seed": seed} for seed in range(4)),
    *({"seed": seed, "whole": True} for seed in range(10, 16)),
    {"seed": 20, "images": 2, "classes": 2, "objects": 60, "found": 700, "whole": True},
    {"seed": 21, "images": 3, "classes": 2, "objects": 250, "found": 500},
    {"seed": 22, "images": 40, "classes": 60, "objects": 150, "found": 900},
    {"seed": 23, "objects": 1, "found": 1},
]


@pytest.mark.parametrize("limit", [100, 300, 10, 1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tables_are_those_of_pycocotools_to_the_last_digit(case, limit):
    columns, limits = random_columns(**case), limits_of(limit)
    ours, theirs = accumulate(match(columns, limit), limits), tables_by("pycocotools", columns, limits)
    assert ours.precision.shape == theirs.precision.shape
    assert np.array_equal(ours.precision, theirs.precision) and np.array_equal(ours.recall, theirs.recall)
    assert summarize(columns, ours) == summarize(columns, theirs)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_faster_coco_eval_differs_by_one_step_of_floats_at_most(case):
    columns, limits = random_columns(**case), limits_of(100)
    ours, theirs = accumulate(match(columns, 100), limits), tables_by("faster-coco-eval", columns, limits)
    assert np.abs(ours.precision - theirs.precision).max() <= np.spacing(1)
    assert np.array_equal(ours.recall, theirs.recall)


@pytest.mark.parametrize("without", ["objects", "detections", "both"])
def test_of_nothing_the_tables_are_those_of_pycocotools(without):
    columns = random_columns(0)
    rows = slice(0, 0)
    if without != "detections":
        columns.truth, columns.crowds = Boxes(*(v[rows] for v in vars(columns.truth).values())), columns.crowds[rows]
    if without != "objects":
        columns.found, columns.scores = Boxes(*(v[rows] for v in vars(columns.found).values())), columns.scores[rows]
    ours, theirs = accumulate(match(columns, 100), limits_of(100)), tables_by("pycocotools", columns, limits_of(100))
    assert np.array_equal(ours.precision, theirs.precision) and np.array_equal(ours.recall, theirs.recall)


@pytest.mark.parametrize("seed", range(3))
def test_some_images_of_one_matching_are_scored_as_if_they_were_alone(seed):
    columns = random_columns(seed, whole=seed == 1)
    chosen = np.isin(np.arange(10), [1, 4, 5, 9])
    part = accumulate(match(columns, 100), limits_of(100), chosen)

    def rows(boxes: Boxes) -> Boxes:
        kept = chosen[boxes.images]
        at = (np.cumsum(chosen) - 1)[boxes.images[kept]]
        return Boxes(at, boxes.classes[kept], boxes.boxes[kept], boxes.areas[kept])

    alone = Columns(
        [image for image, kept in zip(columns.images, chosen) if kept],
        columns.categories,
        rows(columns.truth),
        columns.crowds[chosen[columns.truth.images]],
        rows(columns.found),
        columns.scores[chosen[columns.found.images]],
    )
    theirs = tables_by("pycocotools", alone, limits_of(100))
    assert np.array_equal(part.precision, theirs.precision) and np.array_equal(part.recall, theirs.recall)


def test_the_memory_limit_changes_nothing(monkeypatch):
    columns = random_columns(21, 3, 2, 250, 500)
    whole = match(columns, 100)
    monkeypatch.setattr(greedy, "PAIRS_AT_ONCE", 7)
    parts = match(columns, 100)
    assert np.array_equal(whole.objects, parts.objects) and np.array_equal(whole.candidates, parts.candidates)


def test_overlaps_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    boxes, others = (random_boxes(rng, 80, 1, 1, 90.0).boxes for _ in range(2))
    boxes[:40], others[:9] = np.round(boxes[:40], -1), np.round(others[:9], -1)
    for crowd in (0, 1):
        expected = mask.iou(boxes, others, [crowd] * 80)
        ours = overlaps(np.repeat(boxes, 80, 0), np.tile(others, (80, 1)), np.full(6400, crowd == 1))
        assert np.array_equal(ours.reshape(80, 80), expected) and (expected > 0.5).any()


def test_places_in_runs():
    assert place_in_run(np.array([3, 3, 1, 3, 3, 3])).tolist() == [0, 1, 0, 0, 1, 2]
    assert place_in_run(np.zeros(0)).tolist() == []


def test_of_equal_scores_the_first_and_of_equal_overlaps_the_last_object():
    truth = truth_of([thing(1, 1, 10, [0, 0, 50, 50]), thing(2, 1, 10, [0, 0, 50, 50])])
    matched = match_detections(from_coco(truth, "t.json"), [found(1, 10, [0, 0, 50, 50], 0.5)] * 3)
    assert matched.rows.tolist() == [0, 1, 2] and matched.objects[0, :, 0].tolist() == [1, 0, -1]
