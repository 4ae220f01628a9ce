"""Losses of distributions of edges against loops over pairs, edges and bins (arXiv 2410.13842)."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from models.distribution import decode_edges
from models.distribution_losses import DistillationLoss, fine_grained_loss
from models.from_config import build_criterion
from models.losses import MatchedGroup
from models.matcher import every_layer
from models.predictions import Assignment, Distributions, PredictionGroup, Predictions
from tests.models.helpers import random_objects
from tests.models.outputs import decoder
from util.config import LossConfig
from util.objects import Objects
from util.syncs import count_syncs

LAYERS, IMAGES, QUERIES, CLASSES = 3, 3, 5, 4
VALUES = [-4.0, *(1 - 3 ** (i / 15) for i in range(15, 0, -1)), 0.0, *(3 ** (i / 15) - 1 for i in range(1, 16)), 4.0]
PAIRS = Assignment(  # image 0: objects 0 and 1, image 1: none, image 2: objects 2 to 4
    torch.tensor([0, 0, 0, 2, 2, 2]), torch.tensor([3, 1, 1, 0, 4, 2]), torch.tensor([1, 0, 1, 2, 4, 3])
)
VALID = {
    "all": torch.tensor([True, True, False, True, True, True]),  # query 1 of image 0 is in two pairs
    "some": torch.tensor([True, False, True, False, True, True]),
    "none": torch.zeros(6, dtype=torch.bool),
}
PENALISED = torch.ones(IMAGES, QUERIES, dtype=torch.bool).index_put(
    (torch.tensor([0, 0, 1, 2]), torch.tensor([0, 4, 2, 3])), torch.tensor(False)
)
CASES = {
    "all": {},
    "some": {},
    "none": {},
    "weights": {"weights": torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)},
    "penalised": {"penalised": PENALISED},
}
by_case = pytest.mark.parametrize("case", CASES)


def example(case: str, dtype=torch.float64) -> tuple[PredictionGroup, list[Objects]]:
    """Boxes that edges start from near the objects, some of them so far off that the object is out of reach."""
    rng = torch.Generator().manual_seed(4)
    objects = [replace(o, boxes=o.boxes.to(dtype)) for o in random_objects([2, 0, 3], num_classes=CLASSES, seed=5)]
    start = 0.2 + 0.4 * torch.rand(IMAGES, QUERIES, 4, generator=rng, dtype=torch.float64)
    wanted = torch.cat([o.boxes for o in objects])
    for k, (i, q, t) in enumerate(zip(PAIRS.image, PAIRS.query, PAIRS.object)):
        start[i, q] = wanted[t] * (1 + 0.1 * k) if k < 5 else wanted[t] * 0.3
    edges = torch.randn(LAYERS, IMAGES, QUERIES, 4, 33, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES, generator=rng, dtype=torch.float64).to(dtype)
    start = start.to(dtype).requires_grad_()
    group = decoder(logits.requires_grad_(), decode_edges(edges, start).detach(), **CASES[case])
    group.assignment = replace(PAIRS, valid=VALID.get(case, VALID["all"]))
    group.distributions = Distributions(edges, start)
    return group, objects


def pairs_of(group: PredictionGroup) -> dict[tuple[int, int], int]:
    of = group.assignment
    table = zip(of.image.tolist(), of.query.tolist(), of.object.tolist(), of.valid.tolist())
    return {(i, q): t for i, q, t, counts in table if counts}


def weight_of(group: PredictionGroup, image: int) -> float:
    return 1.0 if group.weights is None else float(group.weights[image])


def iou_of(a, b) -> float:
    return float(box_iou(*(box_convert(v.detach(), "cxcywh", "xyxy")[None] for v in (a, b))))


def entropies(logits: torch.Tensor, wanted: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the four edges of one box with the bins on either side of the object's edges, added up."""
    (cx, cy, w, h), (tx, ty, tw, th) = start.tolist(), wanted.tolist()
    outwards = [(cx - w / 2) - (tx - tw / 2), (cy - h / 2) - (ty - th / 2)]
    outwards += [(tx + tw / 2) - (cx + w / 2), (ty + th / 2) - (cy + h / 2)]
    total = torch.zeros((), dtype=logits.dtype)
    for edge, (moved, size) in enumerate(zip(outwards, (w, h, w, h))):
        phi = max(-4.0, min(4.0, 4 * moved / size))
        n = next(k for k in range(32) if phi <= VALUES[k + 1])
        right = abs(phi - VALUES[n]) / abs(VALUES[n + 1] - VALUES[n])
        chances = logits[edge].exp() / logits[edge].exp().sum()
        total = total - (1 - right) * chances[n].log() - right * chances[n + 1].log()
    return total


def fgl_by_loops(group: PredictionGroup, objects: list[Objects]) -> torch.Tensor:
    wanted, totals = torch.cat([o.boxes for o in objects]), []
    for n in range(LAYERS):
        total = torch.zeros((), dtype=torch.float64)
        for (i, q), t in pairs_of(group).items():
            of_pair = entropies(group.distributions.logits[n, i, q], wanted[t], group.distributions.start[i, q])
            total = total + weight_of(group, i) * iou_of(group.boxes[n, i, q], wanted[t]) * of_pair
        totals.append(total)
    return torch.stack(totals)


def distillation_by_loops(group: PredictionGroup, objects: list[Objects]) -> torch.Tensor:
    wanted, pairs, totals = torch.cat([o.boxes for o in objects]), pairs_of(group), []
    penalised = torch.ones(IMAGES, QUERIES) if group.penalised is None else group.penalised
    for n in range(LAYERS - 1):
        total = torch.zeros((), dtype=torch.float64)
        for i in range(IMAGES):
            of_pairs, of_others = [], []
            for q in range(QUERIES):
                apart = []
                for edge in range(4):
                    of_layer = (group.distributions.logits[n, i, q, edge] / 5).softmax(0)
                    of_last = (group.distributions.logits[-1, i, q, edge].detach() / 5).softmax(0)
                    terms = [of_last[b] * (of_last[b].log() - of_layer[b].log()) for b in range(33)]
                    apart.append(25 * sum(terms))
                apart = sum(apart) / 4
                if (i, q) in pairs:
                    of_pairs.append(iou_of(group.boxes[n, i, q], wanted[pairs[i, q]]) * apart)
                elif penalised[i, q]:
                    of_others.append(float(group.logits[-1, i, q].detach().max().sigmoid()) * apart)
            m, u = len(of_pairs), len(of_others)
            if m:
                mean = m * sum(of_others) / u
                found = (math.sqrt(m) * sum(of_pairs) + math.sqrt(u) * mean) / (math.sqrt(m) + math.sqrt(u))
                total = total + weight_of(group, i) * found
        totals.append(total)
    return torch.stack([*totals, torch.zeros((), dtype=torch.float64)])


def matched(group: PredictionGroup, objects: list[Objects]) -> MatchedGroup:
    return MatchedGroup.of(group, objects, every_layer(group.assignment, len(group.logits)))


@by_case
@pytest.mark.parametrize(
    ("loss", "by_loops"), [(fine_grained_loss, fgl_by_loops), (DistillationLoss(), distillation_by_loops)]
)
def test_losses_and_gradients_are_those_of_the_definitions(loss, by_loops, case):
    group, objects = example(case)
    found, expected = loss(matched(group, objects)), by_loops(group, objects)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert bool(found[0]) == (case != "none")
    factors = torch.tensor([1.0, 0.3, 0.7], dtype=torch.float64)
    edges = group.distributions.logits
    (gradient,) = torch.autograd.grad(found @ factors, edges, retain_graph=True)
    if case != "none":
        torch.testing.assert_close(gradient, torch.autograd.grad(expected @ factors, edges)[0], rtol=1e-10, atol=1e-12)
    others = torch.autograd.grad(found.sum(), (group.logits, group.distributions.start), allow_unused=True)
    assert others == (None, None)  # scores and the boxes that edges start from learn nothing of it


def test_the_last_layer_teaches_and_does_not_learn():
    group, objects = example("all")
    loss = DistillationLoss()(matched(group, objects))
    (gradient,) = torch.autograd.grad(loss.sum(), group.distributions.logits)
    assert gradient[0].any() and gradient[1].any() and not gradient[2].any()


def test_values_worked_out_by_hand():
    """The object's left edge is an eighth of a width further out: phi = 1/2, between 3^(5/15) - 1 and 3^(6/15) - 1."""
    start = torch.tensor([0.5, 0.5, 0.4, 0.4], dtype=torch.float64)
    wanted = torch.tensor([0.475, 0.5, 0.45, 0.4], dtype=torch.float64)
    objects = [Objects(wanted[None], torch.tensor([0]), 1)]
    edges = torch.zeros(1, 1, 1, 4, 33, dtype=torch.float64)
    edges[..., 0, 22] = math.log(16)  # p = 16/48 there, 1/48 elsewhere; even for the other edges, 1/33
    group = decoder(
        torch.zeros(1, 1, 1, 2).double(), start[None, None, None], distributions=Distributions(edges, start[None, None])
    )
    group.assignment = Assignment(*torch.zeros(3, 1).long())
    right = (0.5 - 0.4422496) / (0.5518456 - 0.4422496)  # 0.526940
    cross = (1 - right) * math.log(48) + right * math.log(3) + 3 * math.log(33)
    assert fine_grained_loss(matched(group, objects)).item() == pytest.approx(0.4 / 0.45 * cross, abs=1e-5)


def test_groups_without_distributions_have_none_of_these_losses():
    group, objects = example("all")
    group.distributions = None
    assert fine_grained_loss(matched(group, objects)) is None and DistillationLoss()(matched(group, objects)) is None
    losses = build_criterion(LossConfig(distillation_weight=1.5))(Predictions([group]), objects)
    assert {name.partition("/")[0] for name in losses} == {"class", "l1", "giou"}


def test_weights_and_names():
    group, objects = example("weights")
    losses = build_criterion(LossConfig(fgl_weight=0.3, distillation_weight=2.0))(Predictions([group]), objects, 7)
    for name, factor, by_loops in (("fgl", 0.3, fgl_by_loops), ("distill", 2.0, distillation_by_loops)):
        found = torch.stack([losses[f"{name}/decoder.{i}"] for i in range(LAYERS)])
        torch.testing.assert_close(found, factor / 7 * by_loops(group, objects))
    assert not any(name.startswith("distill") for name in build_criterion(LossConfig())(Predictions([group]), objects))


def test_logits_of_any_size_give_finite_losses_and_gradients():
    group, objects = example("penalised", torch.float32)
    edges = group.distributions.logits = (1e4 * group.distributions.logits.detach()).requires_grad_()
    for loss in (fine_grained_loss, DistillationLoss()):
        found = loss(matched(group, objects))
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert torch.autograd.grad(found.sum(), edges)[0].isfinite().all()


def test_nothing_waits_for_the_device():
    group, objects = example("penalised")
    with count_syncs(torch.device("cpu")) as syncs:
        losses = build_criterion(LossConfig(distillation_weight=1.5))(Predictions([group]), objects, 5)
        sum(losses.values()).backward()
    assert syncs.total == 0, syncs
