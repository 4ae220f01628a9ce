"""Class losses against loops over queries and classes written from the papers' equations."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from models.class_losses import AlignedLoss, FocalLoss, MatchabilityLoss, PositionLoss, VarifocalLoss
from models.from_config import build_criterion, weighted_class_loss
from models.limits import check_model
from models.losses import MatchedGroup
from models.matcher import HungarianMatcher, every_layer
from models.predictions import Assignment, PredictionGroup, Predictions
from tests.models.helpers import random_objects
from tests.models.outputs import decoder, predictions
from util.config import LossConfig, ModelConfig
from util.errors import UserError
from util.measuring import measure_peak
from util.objects import Objects
from util.options import from_dict
from util.syncs import count_syncs

DEVICE = torch.device("cpu")
KINDS = ["focal", "varifocal", "ia_bce", "mal", "position"]
LOSSES = dict(zip(KINDS, (FocalLoss(), VarifocalLoss(), AlignedLoss(), MatchabilityLoss(), PositionLoss())))
PAIRS = Assignment(  # image 0: objects 0 and 1, image 1: none, image 2: objects 2 to 4
    torch.tensor([0, 0, 0, 2, 2, 2]), torch.tensor([3, 1, 1, 0, 4, 2]), torch.tensor([1, 0, 1, 2, 4, 3])
)


def bce(z, t):
    return -t * F.logsigmoid(z) - (1 - t) * F.logsigmoid(-z)


def iou_of(a, b) -> float:
    return float(box_iou(*(box_convert(v.detach().double(), "cxcywh", "xyxy")[None] for v in (a, b))))


def of_background(kind, z):
    p = z.sigmoid()
    factor = {
        "focal": 0.75 * p**2,
        "varifocal": 0.75 * p**2,
        "ia_bce": p**2,
        "mal": p.detach() ** 1.5,
        "position": 0.75 * p**2,
    }[kind]
    return factor * bce(z, 0.0)


def of_pair(kind, z, q, best):
    p = z.sigmoid()
    if kind == "focal":
        return 0.25 * (1 - p) ** 2 * bce(z, 1.0)
    if kind == "varifocal":
        return q * bce(z, q)
    if kind == "ia_bce":
        return bce(z, max(float(p.detach()) ** 0.25 * q**0.75, 0.01))
    if kind == "mal":
        return bce(z, q**1.5)
    t = q**2 / (best**2 + 1e-8)
    return 0.25 * (t - p) ** 2 * bce(z, t)


def by_loops(kind, group: PredictionGroup, objects: list[Objects], counts=lambda image, label: True) -> torch.Tensor:
    """The loss of each layer, one element after the other; of what is no pair only where `counts` says so."""
    boxes, labels = torch.cat([o.boxes for o in objects]), torch.cat([o.labels for o in objects])
    given, (layers, images, queries, classes) = group.assignment, group.logits.shape
    valid = [True] * len(given.query) if given.valid is None else given.valid.tolist()
    table = list(zip(given.image.tolist(), given.query.tolist(), given.object.tolist(), valid))
    pairs = {(i, q): t for i, q, t, counts in table if counts}
    totals = []
    for n in range(layers):
        total = torch.zeros((), dtype=group.logits.dtype)
        for i in range(images):
            fits = {(a, q): iou_of(group.boxes[n, a, q], boxes[t]) for (a, q), t in pairs.items() if a == i}
            weight = 1.0 if group.weights is None else float(group.weights[i])
            for q in range(queries):
                for c in range(classes):
                    z = group.logits[n, i, q, c]
                    if (i, q) in fits and labels[pairs[i, q]] == c:
                        total = total + weight * of_pair(kind, z, fits[i, q], max(fits.values()))
                    elif counts(i, c):
                        total = total + weight * of_background(kind, z)
        totals.append(total)
    return torch.stack(totals)


def assigned(valid=None, weights=None, pairs=PAIRS, dtype=torch.float64) -> tuple[PredictionGroup, list[Objects]]:
    """Queries near the objects that are given to them, some of them of no overlap, and a wide range of logits."""
    objects = random_objects([2, 0, 3], num_classes=3, seed=5)
    rng = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(2, 3, 5, 3, generator=rng, dtype=torch.float64)
    boxes = 0.2 + 0.4 * torch.rand(2, 3, 5, 4, generator=rng, dtype=torch.float64)
    wanted = torch.cat([o.boxes for o in objects]).double()
    for n, shift in enumerate((0.01, 0.04)):
        for k, (i, q, t) in enumerate(zip(PAIRS.image, PAIRS.query, PAIRS.object)):
            boxes[n, i, q] = wanted[t] + (shift * k if k < 5 else 0.7)
    logits[0, 0, 3, 1], logits[1, 2, 0, 0], logits[:, 1, 0, 0] = 60.0, -60.0, 22.0
    objects = [replace(o, boxes=o.boxes.double()) for o in objects]
    group = decoder(logits.to(dtype).requires_grad_(), boxes.to(dtype), weights=weights)
    group.assignment = replace(pairs, valid=valid)
    return group, objects


def matched(group, objects) -> MatchedGroup:
    return MatchedGroup.of(group, objects, every_layer(group.assignment, len(group.logits)))


# Of query 1 in image 0, one of two pairs counts; in image 2 the pair that fits best does not.
VALID = torch.tensor([True, False, True, False, True, True])
CASES = {
    "all": (torch.tensor([True, True, False, True, True, True]), None),
    "invalid": (VALID, None),
    "weights": (VALID, torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)),
    "none_valid": (torch.zeros(6, dtype=torch.bool), None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_equations(kind, case):
    group, objects = assigned(*CASES[case])
    expected = by_loops(kind, group, objects)
    found = LOSSES[kind](matched(group, objects))
    assert found.shape == (2,)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    factors = torch.tensor([1.0, 0.3], dtype=torch.float64)
    gradients = [torch.autograd.grad(value @ factors, group.logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_valid_all_pairs_count(kind):
    one_each = Assignment(*(v[[0, 1, 3, 4, 5]] for v in (PAIRS.image, PAIRS.query, PAIRS.object)))
    group, objects = assigned(pairs=one_each)
    found = LOSSES[kind](matched(group, objects))
    torch.testing.assert_close(found, by_loops(kind, group, objects), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    # p of the pair 3/4, its IoU 1/2; p of the other class 1/4, of which BCE(p, 0) = ln 4/3 = 0.287682.
    [
        ("focal", 0.25 / 16 * 0.287682 + 0.75 / 16 * 0.287682),
        ("varifocal", 0.418494 + 0.75 / 16 * 0.287682),  # 1/2 (ln 4 - 1/2 ln 3)
        ("ia_bce", 0.778387 + 1 / 16 * 0.287682),  # t = 0.930605 * 0.594604 = 0.553341; ln 4 - t ln 3
        ("mal", 0.997876 + 1 / 8 * 0.287682),  # t = 0.353553
        ("position", 0.25 / 16 * 0.287682 + 0.75 / 16 * 0.287682),  # alone it is the best: t = 1
    ],
)
def test_values_worked_out_by_hand(kind, expected):
    logits = torch.tensor([3.0, 1 / 3], dtype=torch.float64).log()[None, None, None]
    objects = [Objects(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0]), 1)]
    group = decoder(logits, torch.tensor([[[[0.5, 0.5, 0.2, 0.4]]]]), assignment=Assignment(*torch.zeros(3, 1).long()))
    assert LOSSES[kind](matched(group, objects)).item() == pytest.approx(expected, abs=2e-6)


def test_position_scales_the_targets_of_each_image_and_layer():
    """IoU 1/2 beside one of 1/4: targets 1 and (1/4)^2 / (1/2)^2 = 1/4. At a target the loss and its gradient are 0."""
    objects = [Objects(torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.4, 0.4]]), torch.tensor([0, 0]), 1)]
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4], [0.2, 0.2, 0.1, 0.4]]]], dtype=torch.float64)
    logits = torch.tensor([40.0, -1.0986122886681098], dtype=torch.float64)[None, None, :, None].requires_grad_()
    both = Assignment(torch.zeros(2).long(), torch.arange(2), torch.arange(2))
    loss = PositionLoss()(matched(decoder(logits, boxes, assignment=both), objects))
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert torch.autograd.grad(loss.sum(), logits)[0].abs().max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_runs_into_boxes(kind):
    group, objects = assigned(*CASES["weights"])
    group.boxes = group.boxes.requires_grad_()
    of_boxes = torch.autograd.grad(LOSSES[kind](matched(group, objects)).sum(), group.boxes, allow_unused=True)[0]
    assert of_boxes is None


@pytest.mark.parametrize("kind", KINDS)
def test_without_objects_all_is_background_and_learns(kind):
    out, objects = predictions(queries=4), random_objects([0, 0, 0])
    logits = out.groups[0].logits = out.logits.requires_grad_()
    losses = build_criterion(LossConfig(classification=kind, class_weight=1.0))(out, objects)
    torch.testing.assert_close(losses["class/decoder.1"], of_background(kind, logits[1]).sum())
    sum(losses.values()).backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_size_give_finite_losses_and_gradients(kind):
    group, objects = assigned(*CASES["all"], dtype=torch.float32)
    group.logits = (group.logits.detach() * 1e3).requires_grad_()
    loss = LOSSES[kind](matched(group, objects))
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and group.logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_fp32(kind):
    out, objects = predictions(dtype=torch.float32), random_objects([2, 0, 3])
    criterion = build_criterion(LossConfig(classification=kind))
    half = Predictions([decoder(out.logits.bfloat16(), out.boxes)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = criterion(half, objects)
    plain = criterion(Predictions([decoder(out.logits.bfloat16().float(), out.boxes)]), objects)
    assert mixed == plain


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_batch_is_the_sum_of_its_images(kind):
    out, objects, criterion = predictions(), random_objects([2, 0, 3]), build_criterion(LossConfig(classification=kind))
    logits, boxes = out.logits.requires_grad_(), out.boxes.requires_grad_()
    whole = sum(criterion(Predictions([decoder(logits, boxes)]), objects, 5).values())
    alone = 0
    for i in range(3):
        of_image = decoder(logits[:, i : i + 1], boxes[:, i : i + 1])
        alone = alone + sum(criterion(Predictions([of_image]), objects[i : i + 1], 5).values())
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)
    for gradients in zip(*(torch.autograd.grad(total, (logits, boxes)) for total in (whole, alone))):
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_matching_of_position_is_the_cheapest_with_modulated_probabilities():
    """Among all permutations; with the plain focal cost, other pairs are the cheapest."""
    out, objects = predictions(layers=2, queries=5, seed=3), random_objects([3, 2, 1])
    out.groups[0].logits = 3 * out.logits  # so that classes matter beside boxes
    matcher = build_criterion(LossConfig(classification="position", class_cost=6.0)).matcher
    (found,), (plain,) = (m(out.groups, [objects]) for m in (matcher, HungarianMatcher(class_cost=6.0)))
    assert not torch.equal(found.query, plain.query)
    offset = 0
    for image, target in enumerate(objects):
        count, wanted = len(target.labels), target.boxes.double()
        for layer in range(2):
            boxes = out.boxes[layer, image]
            giou = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted)))
            p = out.logits[layer, image].sigmoid()[:, target.labels] * ((giou + 1) / 2).sqrt()
            focal = -0.25 * (1 - p) ** 2 * (p + 1e-8).log() + 0.75 * p**2 * (1 - p + 1e-8).log()
            cost = 6 * focal + 5 * torch.cdist(boxes, wanted, p=1) - 2 * giou
            torch.testing.assert_close(matcher.cost(out.groups[0], objects)[layer, image, :, :count], cost)
            best = min(permutations(range(5), count), key=lambda q, c=cost: sum(c[a, b] for b, a in enumerate(q)))
            here = (found.layer == layer) & (found.image == image)
            pairs = sorted(zip(found.query[here].tolist(), found.object[here].tolist()))
            assert pairs == sorted((q, offset + t) for t, q in enumerate(best))
        offset += count


def test_boxes_that_do_not_touch_have_a_finite_modulated_cost():
    """However far apart and small they are, and however their areas are rounded, GIoU is at least -1."""
    far = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e-7, 1e-7, 1e-7, 1e-7], [1.0, 1.0, 1e-7, 1e-7]])
    boxes = torch.rand(400, 4, generator=torch.Generator().manual_seed(0)) ** torch.tensor([1.0, 1.0, 20.0, 20.0])
    boxes = torch.cat([far, boxes])
    objects = [Objects(boxes, torch.zeros(len(boxes), dtype=torch.long), 1)]
    group = decoder(torch.zeros(1, 1, len(boxes), 2), boxes[None, None])
    assert HungarianMatcher(modulation=0.5).cost(group, objects).isfinite().all()


@pytest.mark.parametrize(("kind", "weight"), [*zip(KINDS, (2, 1, 1, 1, 6))])
def test_each_has_the_weight_of_its_paper_unless_another_is_asked_for(kind, weight):
    assert weighted_class_loss(LossConfig(classification=kind)) == (weight, LOSSES[kind])
    assert weighted_class_loss(LossConfig(classification=kind, class_weight=0.5)) == (0.5, LOSSES[kind])
    assert build_criterion(LossConfig(classification=kind)).matcher.pair_cost.modulation == (
        0.5 if kind == "position" else 0
    )
    group, objects = assigned(*CASES["weights"])
    losses = build_criterion(LossConfig(classification=kind))(Predictions([group]), objects, 7)
    expected = weight / 7 * by_loops(kind, group, objects)
    torch.testing.assert_close(torch.stack([losses[f"class/decoder.{i}"] for i in range(2)]), expected)


def test_configurations_from_before_there_was_a_choice_mean_the_same():
    old = from_dict(LossConfig, {"class_weight": 2.0, "focal_alpha": 0.3})
    assert weighted_class_loss(old) == weighted_class_loss(LossConfig(focal_alpha=0.3)) == (2.0, FocalLoss(0.3))
    assert weighted_class_loss(replace(old, classification="position"))[1] == PositionLoss(0.3)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_loss_without_weight_is_refused(kind):
    with pytest.raises(UserError, match=f"^loss.classification {kind} does nothing with loss.class_weight 0; "):
        check_model(ModelConfig(), LossConfig(classification=kind, class_weight=0.0))
    check_model(ModelConfig(), LossConfig(classification=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device_but_the_matcher(kind):
    criterion = build_criterion(LossConfig(classification=kind))
    objects = random_objects([2, 0, 3], num_classes=3)
    free, (given, _) = decoder(torch.randn(2, 3, 5, 3), torch.rand(2, 3, 5, 4)), assigned(*CASES["weights"])
    with count_syncs(DEVICE) as syncs:
        losses = criterion(Predictions([free]), objects, 5)
        given.name = "given"
        losses |= criterion(Predictions([given]), objects, 5)
        sum(losses.values()).backward()
    assert syncs.total == 1, syncs


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_the_logits_and_their_gradient(kind):
    rng = torch.Generator().manual_seed(0)
    objects = random_objects([3, 5], num_classes=50)
    pairs = Assignment(torch.tensor([0, 1, 1]), torch.tensor([5, 7, 9]), torch.tensor([1, 3, 6]))

    def peak(loss) -> float:
        logits = torch.randn(3, 2, 4000, 50, generator=rng).requires_grad_()
        group = decoder(logits, torch.rand(3, 2, 4000, 4, generator=rng), assignment=pairs)
        return measure_peak(lambda: loss(matched(group, objects)).sum().backward(), DEVICE, [logits]) / logits.nbytes

    assert peak(LOSSES[kind]) < 2.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 40])
def test_a_few_logits_at_a_time_add_up_to_all(kind, most, monkeypatch):
    """Queries that do not count are left out even where their logits are infinite."""
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    penalised = torch.ones(3, 5, dtype=torch.bool)
    penalised[1, 2:4] = False
    found = []
    for at_once in (2**16, most):
        monkeypatch.setattr("models.background.AT_ONCE", {"cpu": at_once})
        group, objects = assigned(weights=weights)
        group.penalised = penalised
        with torch.no_grad():
            group.logits[:, 1, 2] = float("-inf")
        loss = LOSSES[kind](matched(group, objects))
        loss.sum().backward()
        found.append((loss, group.logits.grad))
        assert not group.logits.grad[:, 1, 2:4].any()
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
