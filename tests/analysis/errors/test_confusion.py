import numpy as np
import pytest

from analysis.errors.confusion import confusion_matrix, most_confused
from tests.analysis.errors.scenery import found, random_data, scenes_from, thing, truth_of

CAT, DOG = 10, 20
A, B, FAR = [0, 0, 50, 50], [200, 200, 50, 50], [300, 20, 40, 40]


def matrix_of(annotations: list[dict], results: list[dict], threshold: float = 0.5) -> list[list[int]]:
    return confusion_matrix(scenes_from(truth_of(annotations), results), 2, threshold).tolist()


def test_by_hand():
    annotations = [thing(CAT, A), thing(CAT, B), thing(DOG, [100, 0, 50, 50]), thing(DOG, [0, 200, 50, 50])]
    results = [
        found(CAT, A, 0.9),
        found(DOG, B, 0.8),
        found(DOG, [100, 0, 50, 50], 0.7),
        found(DOG, [0, 200, 50, 50], 0.4),  # below the threshold
        found(CAT, FAR, 0.6),
    ]
    assert matrix_of(annotations, results) == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert matrix_of(annotations, results, 0.4) == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert matrix_of(annotations, results, 0.95) == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]


def test_the_best_score_takes_an_object_whatever_its_class():
    results = [found(CAT, A, 0.8), found(DOG, A, 0.9)]
    assert matrix_of([thing(CAT, A)], results) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_detection_takes_the_object_it_overlaps_most_and_of_equals_its_own_class():
    near = [0, 0, 50, 40]
    assert matrix_of([thing(CAT, near), thing(DOG, A)], [found(CAT, A, 0.9)]) == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    for annotations in ([thing(CAT, A), thing(DOG, A)], [thing(DOG, A), thing(CAT, A)]):
        assert matrix_of(annotations, [found(DOG, A, 0.9)]) == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_an_iou_of_one_half_is_enough():
    assert matrix_of([thing(CAT, [0, 0, 20, 10])], [found(CAT, [0, 0, 10, 10], 0.9)])[0] == [1, 0, 0]
    assert matrix_of([thing(CAT, [0, 0, 21, 10])], [found(CAT, [0, 0, 10, 10], 0.9)])[0] == [0, 0, 1]


def test_on_a_crowd_of_its_class_a_detection_is_not_counted():
    crowd = thing(CAT, [100, 100, 200, 150], crowd=1)
    inside = [120, 120, 30, 30]
    assert matrix_of([crowd], [found(CAT, inside, 0.9)]) == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert matrix_of([crowd], [found(DOG, inside, 0.9)]) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_nothing_at_all():
    assert matrix_of([], []) == [[0] * 3] * 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_rows_sum_to_objects_and_columns_to_detections(seed, threshold):
    truth, results = random_data(seed)
    scenes = scenes_from(truth, results)
    matrix = confusion_matrix(scenes, 3, threshold)
    objects = [sum(a["category_id"] == c and not a["iscrowd"] for a in truth["annotations"]) for c in (10, 20, 30)]
    assert matrix[:3].sum(1).tolist() == objects and min(objects) > 0
    assert matrix[3, 3] == 0
    counted = [sum(r["category_id"] == c and r["score"] >= threshold for r in results) for c in (10, 20, 30)]
    assert (matrix[:, :3].sum(0) <= counted).all()
    without, results = random_data(seed, crowds=0)
    matrix = confusion_matrix(scenes_from(without, results), 3, threshold)
    counted = [sum(r["category_id"] == c and r["score"] >= threshold for r in results) for c in (10, 20, 30)]
    assert matrix[:, :3].sum(0).tolist() == counted


def test_most_confused_pairs_come_first_without_the_background():
    matrix = np.array([[9, 2, 0, 50], [5, 9, 0, 50], [1, 0, 9, 50], [50, 50, 50, 0]])
    assert most_confused(matrix, 2) == [(1, 0, 5), (0, 1, 2)]
    assert most_confused(matrix, 10) == [(1, 0, 5), (0, 1, 2), (2, 0, 1)]
