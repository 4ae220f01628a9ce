"""Matching against brute force and the formulas."""

from dataclasses import replace
from functools import partial
from itertools import permutations, product

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from models.from_config import build_criterion
from models.matcher import HungarianMatcher, _matches, _solve, shortlist
from models.overlaps import crossed_iou, generalized_iou
from models.pair_costs import PairCost, runs_of_images
from models.predictions import PredictionGroup
from tests.models.helpers import random_objects
from tests.models.outputs import decoder, predictions, random_group
from util.config import LossConfig
from util.measuring import measure_peak
from util.objects import Objects


def cost_by_hand(logits, boxes, target):
    """Cost `[Q, T]` of one image, from the formulas; GIoU by torchvision."""
    p = logits.sigmoid()
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    xyxy = [box_convert(b.to(boxes.dtype), "cxcywh", "xyxy") for b in (boxes, target.boxes)]
    return (
        2 * (positive - negative)[:, target.labels]
        + 5 * torch.cdist(boxes, target.boxes.to(boxes.dtype), p=1)
        - 2 * generalized_box_iou(*xyxy)
    )


def pairs_of(matches, layer, image):
    here = (matches.layer == layer) & (matches.image == image)
    return sorted(zip(matches.query[here].tolist(), matches.object[here].tolist()))


def solved(costs, queries, counts, repeats=1):
    return _matches(_solve(costs, queries, counts, repeats), counts, torch.device("cpu"))


def test_costs_equal_the_formulas_of_each_image_alone():
    out, targets = predictions(), random_objects([2, 0, 3])
    cost = HungarianMatcher().cost(out.groups[0], targets)
    assert cost.shape == (3, 3, 7, 3)  # padded to the most objects of an image, never one image against another
    for layer in range(3):
        for image, target in enumerate(targets):
            expected = cost_by_hand(out.logits[layer, image], out.boxes[layer, image], target)
            torch.testing.assert_close(cost[layer, image, :, : len(target.labels)], expected, atol=1e-5, rtol=0)


def test_matching_is_the_cheapest_of_all():
    out, targets = predictions(layers=2, queries=5), random_objects([3, 2, 1])
    (matches,) = HungarianMatcher()(out.groups, [targets])
    offset = 0
    for image, target in enumerate(targets):
        count = len(target.labels)
        for layer in range(2):
            cost = cost_by_hand(out.logits[layer, image], out.boxes[layer, image], target)
            best = min(permutations(range(5), count), key=lambda q, c=cost: sum(c[a, b] for b, a in enumerate(q)))
            assert pairs_of(matches, layer, image) == sorted((q, offset + t) for t, q in enumerate(best))
        offset += count


@pytest.mark.parametrize("repeats", [1, 2])
def test_of_more_objects_than_queries_the_cheapest_are_matched(repeats):
    """As of a mosaic of crowded images: every query gets an object, and the choice costs the least of all."""
    out, targets = predictions(layers=1, batch=2, queries=3), random_objects([5, 2])
    (matches,) = HungarianMatcher()([replace(out.groups[0], repeats=repeats)], [targets])
    for image, (target, start) in enumerate(zip(targets, (0, 5))):
        cost = cost_by_hand(out.logits[0, image], out.boxes[0, image], target).repeat(1, repeats)
        columns = len(target.labels)
        found = pairs_of(matches, 0, image)
        assert len(found) == min(3, repeats * columns) == len({q for q, _ in found})
        assert all(sum(t == of for _, of in found) <= repeats for t in range(start, start + columns))
        wide = cost if cost.shape[0] <= cost.shape[1] else cost.T  # each of the fewer gets one of the more
        least = min(sum(wide[i, j] for i, j in enumerate(of)) for of in permutations(range(wide.shape[1]), len(wide)))
        assert float(sum(cost[q, of - start] for q, of in found)) == pytest.approx(float(least), abs=1e-5)
    losses = build_criterion(LossConfig())(out, targets)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("objects", [1, 3, 12])
def test_the_shortlist_holds_the_cheapest_assignment(objects):
    """Against scipy on all queries; without ties the pairs are the same."""
    cost = torch.randn(2, 3, 1500, objects, generator=torch.Generator().manual_seed(objects))
    cost[0, 0, 7] -= 9  # a query that is the best one for every object
    short, rows = shortlist(cost)
    assert short.shape == (2, 3, objects * objects, objects)
    for layer, image in product(range(2), range(3)):
        assert torch.equal(cost[layer, image, rows[layer, image]], short[layer, image])
    found = solved(short.numpy(), rows.numpy(), [objects] * 3)
    plain = solved(cost.numpy(), None, [objects] * 3)
    for name in ("layer", "image", "query", "object"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name


@pytest.mark.parametrize("repeats", [3, 20])
def test_an_object_is_given_to_so_many_queries(repeats):
    """As if it were so many objects, also where those are more than the queries; a crowd takes no more to transfer."""
    out, targets = predictions(layers=2, queries=30), random_objects([3, 0, 2])
    many = [replace(o, boxes=o.boxes.repeat(repeats, 1), labels=o.labels.repeat(repeats)) for o in targets]
    (plain,) = HungarianMatcher()(out.groups, [many])
    (found,) = HungarianMatcher()([replace(out.groups[0], repeats=repeats)], [targets])
    counts, offset, wanted = [3, 0, 2], 0, []
    for image, count in enumerate(counts):
        mine = plain.image == image
        of = (plain.object[mine] - offset * repeats) % max(1, count) + offset
        wanted += zip(*(t.tolist() for t in (plain.layer[mine], plain.image[mine], plain.query[mine], of)))
        offset += count
    assert sorted(zip(*(t.tolist() for t in (found.layer, found.image, found.query, found.object)))) == sorted(wanted)


def test_the_shortlist_holds_the_cheapest_assignment_with_repetitions():
    cost = torch.randn(1, 2, 1500, 4, generator=torch.Generator().manual_seed(0))
    cost[0, 0, 7] -= 9  # a query that is the best one for every object
    short, rows = shortlist(cost, 6)
    assert short.shape == (1, 2, 6 * 4 * 4, 4)
    found = solved(short.numpy(), rows.numpy(), [4, 4], 6)
    plain = solved(cost.repeat(1, 1, 1, 6).numpy(), None, [24, 24])
    assert found.query.tolist() == plain.query.tolist() and len(found.query) == 48
    wanted = plain.object % 24 % 4 + 4 * plain.image
    assert torch.equal(found.object, wanted) and torch.equal(found.image, plain.image)


def test_few_queries_are_not_shortened():
    cost = torch.randn(1, 1, 300, 7)
    assert shortlist(cost)[0] is cost and shortlist(cost)[1] is None


def test_overlaps_of_thin_boxes_are_exact_and_of_empty_ones_finite():
    thin = torch.tensor([[0.5, 0.5, 1e-4, 2e-3], [0.3, 0.6, 5e-5, 0.4], [0.5, 0.5, 1e-3, 1e-3]], dtype=torch.float64)
    moved = thin + torch.tensor([2e-5, 0.0, 0.0, 1e-4])
    expected = generalized_box_iou(box_convert(thin, "cxcywh", "xyxy"), box_convert(moved, "cxcywh", "xyxy"))
    torch.testing.assert_close(generalized_iou(thin[:, None], moved), expected, rtol=1e-9, atol=1e-9)
    assert float(generalized_iou(thin[0], thin[0])) == pytest.approx(1, abs=1e-9)

    empty = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.2], [0.2, 0.2, 1e-30, 1e-30]], requires_grad=True)
    found = generalized_iou(empty[:, None], torch.cat([empty.detach(), torch.tensor([[0.5, 0.5, 0.1, 0.1]])]))
    found.sum().backward()
    assert found.isfinite().all() and empty.grad.isfinite().all()


def test_overlaps_of_planes_are_those_of_boxes_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        a, b = (torch.rand(n, 4, generator=generator, dtype=dtype) for n in (70, 50))
        a[:5] = b[:5]
        a[5, 2:], b[7, 3] = 0, 0
        planes = crossed_iou(a.T[:, :, None], b.T[:, None, :])
        assert torch.equal(planes, generalized_iou(a[:, None], b))


@pytest.mark.parametrize("modulation", [0.0, 0.5])
@pytest.mark.parametrize("classes", [3, 40])  # fewer and more of them than objects
def test_crowds_in_pieces_are_matched_as_at_once(monkeypatch, classes, modulation):
    counts, generator = [12, 0, 7, 30], torch.Generator().manual_seed(4)
    targets = random_objects(counts, num_classes=classes)
    logits, boxes = random_group(generator, 2, 4, 25, classes=classes)
    groups = [decoder(logits, boxes), decoder(logits[:1], boxes[:1], repeats=3)]
    matcher, tables = HungarianMatcher(modulation=modulation), []
    for most in (2**22, 500, 1):
        monkeypatch.setattr("models.matcher.BLOCK", most)
        monkeypatch.setattr("models.pair_costs.AT_ONCE", {"cpu": most})
        found = matcher(groups, [targets, targets])
        cost = matcher.cost(groups[0], targets)
        tables.append([*(vars(matches)[k] for matches in found for k in ("layer", "image", "query", "object")), cost])
    for table in tables[1:]:
        *indices, cost = zip(tables[0], table)
        assert all(torch.equal(*pair) for pair in indices)
        torch.testing.assert_close(*cost, rtol=1e-14, atol=1e-14)
    assert len(tables[0][0]) == 2 * (12 + 7 + 25)


@pytest.mark.parametrize(
    ("counts", "runs"), [([], [(0, 0)]), ([0, 0], [(0, 2)]), ([3, 3, 9, 1, 1], [(0, 2), (2, 3), (3, 5)])]
)
def test_runs_of_images_hold_so_many_pairs(counts, runs):
    assert runs_of_images(counts, 10, 60) == [range(*run) for run in runs]


def test_memory_of_a_crowd_does_not_grow_with_the_batch(monkeypatch):
    monkeypatch.setattr("models.matcher.BLOCK", 2**17)
    monkeypatch.setattr("models.pair_costs.AT_ONCE", {"cpu": 2**14})
    logits, boxes = random_group(torch.Generator().manual_seed(0), 2, 24, 300, classes=5, dtype=torch.float32)
    call = partial(HungarianMatcher(), [decoder(logits, boxes)], [random_objects([80] * 24, num_classes=5)])
    pairs = 2 * 24 * 300 * 80
    assert measure_peak(call, torch.device("cpu"), []) < 4 * pairs / 2


@pytest.mark.parametrize("most", [1, 5], ids=["more classes than objects", "fewer"])
def test_a_label_beyond_the_classes_is_an_error_and_not_a_class_of_the_next_image(most):
    torch.manual_seed(0)
    group = PredictionGroup("decoder", torch.randn(1, 2, 4, 3), torch.rand(1, 2, 4, 4))
    objects = [Objects(torch.rand(most, 4), torch.full((most,), 3), i) for i in range(2)]
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        PairCost(2, 5, 2, 0.25, 2, 0)(group, objects, range(2))
