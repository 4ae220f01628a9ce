"""Merging rules against hand-worked cases and plain loops written from the papers."""

import math

import pytest
import torch

from engine.merge import merge_views
from models.postprocess import Detections

RULES = ("top_k", "nms", "soft_nms", "wbf", "wbf_set")


def detections(*rows: tuple) -> Detections:
    """Rows of (x0, y0, x1, y1, score, label), best first."""
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([row[4] for row in rows], dtype=torch.float32)
    return Detections(boxes, scores, torch.tensor([row[5] for row in rows], dtype=torch.int64))


def rows(found: Detections) -> list[tuple]:
    columns = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
    return [(*box, score, label) for box, score, label in columns]


def check(found: Detections, expected: list[tuple], tolerance: float = 1e-5) -> None:
    assert found.labels.tolist() == [row[5] for row in expected]
    assert found.scores.tolist() == pytest.approx([row[4] for row in expected], abs=tolerance)
    for box, row in zip(found.boxes.tolist(), expected):
        assert box == pytest.approx(row[:4], abs=1e-3)


def iou_of(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0.0) * max(h, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def by_loops(views: list[Detections], rule: str, top_k: int, iou: float, sigma: float) -> list[tuple]:
    """Each rule as its paper words it, one class after the other, in Python's floats."""
    every = [(*row, v) for v, view in enumerate(views) for row in rows(view)]
    merged = []
    for label in sorted({row[5] for row in every}):
        left = sorted((row for row in every if row[5] == label), key=lambda row: -row[4])
        if rule == "top_k":
            merged += [row[:6] for row in left]
        elif rule == "nms":
            kept = []
            for row in left:
                if all(iou_of(row, k) <= iou for k in kept):
                    kept.append(row)
            merged += [row[:6] for row in kept]
        elif rule == "soft_nms":
            left = [list(row[:6]) for row in left]
            while left:
                best = max(left, key=lambda row: row[4])
                left.remove(best)
                merged.append(tuple(best))
                for row in left:
                    row[4] *= math.exp(-(iou_of(best, row) ** 2) / sigma)
        else:
            clusters: list[list[tuple]] = []
            fused: list[list[float]] = []
            for row in left:
                free = [
                    c
                    for c, box in enumerate(fused)
                    if iou_of(box, row) > iou and (rule == "wbf" or row[6] not in [r[6] for r in clusters[c]])
                ]
                if free:
                    c = max(free, key=lambda c: iou_of(fused[c], row))
                    clusters[c].append(row)
                else:
                    c = len(clusters)
                    clusters.append([row])
                    fused.append([])
                weight = sum(r[4] for r in clusters[c])
                fused[c] = [sum(r[4] * r[d] for r in clusters[c]) / weight for d in range(4)]
            for box, cluster in zip(fused, clusters):
                mean = sum(r[4] for r in cluster) / len(cluster)
                merged.append((*box, mean * min(len(cluster), len(views)) / len(views), label))
    return sorted(merged, key=lambda row: -row[4])[:top_k]


def random_views(seed: int, views: int = 4, objects: int = 25, classes: int = 3) -> list[Detections]:
    """What several views see of the same objects, some of them twice, with boxes that leave the image."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(objects, 2, generator=generator) * 200 - 20
    boxes = torch.cat([corner, corner + torch.rand(objects, 2, generator=generator) * 60 + 20], 1)
    labels = torch.randint(classes, (objects,), generator=generator)
    found = []
    for _ in range(views):
        seen = torch.randint(objects, (objects + 10,), generator=generator)
        moved = boxes[seen] + torch.randn(len(seen), 4, generator=generator) * 4
        scores = torch.rand(len(seen), generator=generator).sort(descending=True).values
        found.append(Detections(moved, scores, labels[seen]))
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("iou", "sigma"), [(0.55, 0.5), (0.3, 0.1)])
def test_random_boxes_as_by_plain_loops(rule, seed, iou, sigma):
    views = random_views(seed)
    for top_k in (1000, 20):
        expected = by_loops(views, rule, top_k, iou, sigma)
        assert top_k == 20 or rule in ("top_k", "soft_nms") or 20 < len(expected) < 140  # something was merged
        check(merge_views(views, rule, top_k, iou, sigma), expected)


# Two views of an object, half a box apart from a second one: IoU 1/3.
LEFT, RIGHT = (0, 0, 10, 10), (5, 0, 15, 10)


def test_top_k_keeps_doubles():
    found = merge_views([detections((*LEFT, 0.9, 0), (*RIGHT, 0.2, 0)), detections((*LEFT, 0.8, 0))], "top_k", 2)
    assert rows(found) == rows(detections((*LEFT, 0.9, 0), (*LEFT, 0.8, 0)))


def test_nms_by_hand():
    views = [detections((*LEFT, 0.9, 0), (*RIGHT, 0.2, 0)), detections((*LEFT, 0.8, 0))]
    check(merge_views(views, "nms", iou=0.5), [(*LEFT, 0.9, 0), (*RIGHT, 0.2, 0)])
    check(merge_views(views, "nms", iou=0.3), [(*LEFT, 0.9, 0)])


def test_nms_of_classes_at_opposite_corners():
    """torchvision moves classes apart by the largest coordinate; this box of class 1 would come back to class 0's."""
    views = [detections((90, 90, 100, 100, 0.9, 0), (-11, -11, -1, -1, 0.8, 1))]
    assert len(merge_views(views, "nms", iou=0.5).scores) == 2


def test_soft_nms_by_hand():
    """IoU 1/3 and sigma 0.5: a factor exp(-2/9); the same box: exp(-2)."""
    views = [detections((*LEFT, 0.9, 0), (*RIGHT, 0.2, 0)), detections((*LEFT, 0.8, 0))]
    twice = 0.2 * math.exp(-2 / 9)
    again = 0.8 * math.exp(-2)
    assert twice > again  # so the second object is taken first, and lowers the double once more
    expected = [(*LEFT, 0.9, 0), (*RIGHT, twice, 0), (*LEFT, again * math.exp(-2 / 9), 0)]
    check(merge_views(views, "soft_nms"), expected)
    check(merge_views(views, "soft_nms", top_k=2), expected[:2])


def test_wbf_by_hand():
    views = [detections((0, 0, 10, 10, 0.9, 0)), detections((0, 0, 10, 13, 0.3, 0), (50, 50, 60, 60, 0.2, 0))]
    for rule in ("wbf", "wbf_set"):  # heights weighted 3 to 1; what one of two views found has half its score
        check(merge_views(views, rule), [(0, 0, 10, 10.75, 0.6, 0), (50, 50, 60, 60, 0.1, 0)])


def test_two_boxes_of_one_view_are_one_to_wbf_and_two_to_wbf_set():
    views = [detections((*LEFT, 0.8, 0), (0, 0, 10, 12, 0.4, 0)), detections((*LEFT, 0.6, 0))]
    mean = 10 + 2 * 0.4 / 1.8
    check(merge_views(views, "wbf"), [(0, 0, 10, mean, 0.6, 0)])
    check(merge_views(views, "wbf_set"), [(*LEFT, 0.7, 0), (0, 0, 10, 12, 0.2, 0)])


def test_wbf_compares_with_the_fused_box_as_it_is_by_then():
    """The third box overlaps the first by 0.52 and its mean with the second by more than 0.55."""
    first, second, third = (0, 0, 100, 100), (0, 0, 75, 100), (0, 0, 52, 100)
    views = [detections((*box, 0.5, 0)) for box in (first, second, third)]
    for rule in ("wbf", "wbf_set"):
        check(merge_views(views, rule), [(0, 0, (100 + 75 + 52) / 3, 100, 0.5, 0)])
    alone = [detections((*box, 0.5, 0)) for box in (first, third)]
    assert len(merge_views(alone, "wbf").scores) == 2


def test_wbf_joins_the_cluster_of_the_largest_overlap():
    views = [detections((0, 0, 10, 10, 0.9, 0)), detections((0, 0, 10, 16, 0.8, 0)), detections((0, 0, 10, 14, 0.1, 0))]
    found = merge_views(views, "wbf", iou=0.65)  # overlaps of the third: 10/14 and 14/16
    check(found, [(0, 0, 10, (0.8 * 16 + 0.1 * 14) / 0.9, 0.45 * 2 / 3, 0), (0, 0, 10, 10, 0.3, 0)])


@pytest.mark.parametrize("rule", ["wbf", "wbf_set"])
def test_fusing_the_same_boxes_gives_them_back_to_the_bit(rule):
    one = random_views(5, views=1, objects=8, classes=8)[0]
    apart = merge_views([one], "nms", iou=0.0)
    found = merge_views([apart] * 3, rule)
    assert torch.equal(found.boxes, apart.boxes) and torch.equal(found.labels, apart.labels)
    assert torch.allclose(found.scores, apart.scores)


@pytest.mark.parametrize("rule", RULES)
def test_one_view_of_distinct_objects_stays_as_it_is(rule):
    one = detections((0, 0, 9, 9, 0.9, 1), (20, 0, 29, 9, 0.7, 0), (0, 20, 9, 29, 0.7, 1), (40, 40, 49, 49, 0.0, 1))
    found = merge_views([one], rule)
    assert sorted(rows(found)) == sorted(rows(one)) and found.scores.tolist() == one.scores.tolist()


def test_wbf_set_of_one_view_changes_nothing():
    """Whatever overlaps: that is what distinguishes it from the other rules."""
    one = random_views(7, views=1, classes=1)[0]
    found = merge_views([one], "wbf_set")
    assert torch.allclose(found.boxes, one.boxes) and torch.allclose(found.scores, one.scores)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "top_k"])
def test_classes_do_not_touch_each_other(rule):
    views = random_views(3, classes=2)
    together = merge_views(views, rule, 1000)
    for label in range(2):
        alone = [Detections(*(t[v.labels == label] for t in (v.boxes, v.scores, v.labels))) for v in views]
        expected = merge_views(alone, rule, 1000)
        mine = together.labels == label
        assert torch.allclose(together.boxes[mine], expected.boxes, atol=1e-4)
        assert torch.allclose(together.scores[mine], expected.scores)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_found(rule):
    none, one = detections(), detections((*LEFT, 0.5, 2))
    found = merge_views([none, none], rule)
    assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
    half = 0.25 if rule.startswith("wbf") else 0.5
    check(merge_views([none, one], rule), [(*LEFT, half, 2)])


@pytest.mark.parametrize("rule", RULES)
def test_boxes_without_area_and_without_score(rule):
    point = (3, 3, 3, 3, 0.0, 0)
    found = merge_views([detections(point), detections(point)], rule)
    assert torch.isfinite(found.boxes).all() and found.scores.abs().max() < 1e-9
    assert found.boxes[0].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("rule", RULES)
def test_best_first_of_the_same_types_and_the_inputs_are_kept(rule):
    views = random_views(1)
    before = [rows(v) for v in views]
    found = merge_views(views, rule, 30)
    assert len(found.scores) == 30 and found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert [rows(v) for v in views] == before


@pytest.mark.parametrize("rule", ["top_k", "nms", "soft_nms"])
def test_equal_scores_keep_the_order_of_the_views(rule):
    """Enough of them for a sort that is not stable to mix them."""
    count = 700
    boxes = [(20 * i, 0, 20 * i + 10, 10) for i in range(count)]
    views = [detections(*((*boxes[i], 0.5, i % 3) for i in range(v, count, 2))) for v in range(2)]
    found = merge_views(views, rule, count)
    assert found.boxes[:, 0].tolist() == [20 * i for v in range(2) for i in range(v, count, 2)]


def test_what_cannot_be_merged():
    with pytest.raises(ValueError, match="views is empty"):
        merge_views([], "wbf")
    with pytest.raises(ValueError, match="rule is 'mean'"):
        merge_views([detections()], "mean")
