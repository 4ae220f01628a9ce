"""The federated class loss against loops written from LVIS's lists, in float64."""

from dataclasses import replace

import pytest
import torch

from models.from_config import build_criterion
from models.limits import check_model
from models.losses import MatchedGroup
from models.matcher import every_layer
from models.predictions import Predictions
from models.proposals import class_agnostic
from tests.models import test_class_losses as class_losses
from tests.models.test_class_losses import CASES, DEVICE, KINDS, LOSSES, assigned, matched, of_background
from util.config import LossConfig, ModelConfig
from util.errors import UserError
from util.syncs import count_syncs

# Of three classes. Image 1 has no objects, and of its only negative more objects may be there than are listed.
NEGATIVES = [{2}, {0}, set()]
NOT_EXHAUSTIVE = [set(), {0}, {0}]


def verified(objects, negatives=NEGATIVES, not_exhaustive=NOT_EXHAUSTIVE) -> list:
    """The objects as a data set gives them: with the classes of which nothing is left unsaid."""
    found = []
    for of_image, negative, partly in zip(objects, negatives, not_exhaustive):
        known = (set(of_image.labels.tolist()) | negative) - partly
        found.append(replace(of_image, exhaustive=torch.tensor(sorted(known), dtype=torch.long)))
    return found


def federated(group, objects) -> MatchedGroup:
    return MatchedGroup.of(group, objects, every_layer(group.assignment, len(group.logits)), federated=True)


def by_loops(kind, group, objects, negatives=NEGATIVES, not_exhaustive=NOT_EXHAUSTIVE) -> torch.Tensor:
    """Every query and class, one after the other, and what the lists say of it."""

    def looked_for(image: int, label: int) -> bool:
        """Otherwise nobody looked, or not for all: there may be one."""
        is_there, is_absent = label in objects[image].labels.tolist(), label in negatives[image]
        return (is_there or is_absent) and label not in not_exhaustive[image]

    return class_losses.by_loops(kind, group, objects, looked_for)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_definition(kind, case):
    group, objects = assigned(*CASES[case])
    labels = [set(o.labels.tolist()) for o in objects]
    assert labels == [{0, 1}, set(), {0, 2}]  # a class of pairs that has no background; an image without any class
    expected = by_loops(kind, group, objects)
    found = LOSSES[kind](federated(group, verified(objects)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    everything = LOSSES[kind](matched(group, objects))
    assert (found < everything).all()
    factors = torch.tensor([1.0, 0.3], dtype=torch.float64)
    gradients = [torch.autograd.grad(value @ factors, group.logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)
    assert not gradients[0][:, 1].any()


@pytest.mark.parametrize("kind", ["focal", "mal"])
def test_a_value_worked_out_by_hand(kind):
    """A query of probability 1/2 for each of three classes, of which the last one was looked for: (1/2)^g ln 2."""
    group, objects = assigned()
    group.logits, group.boxes = torch.zeros(1, 1, 1, 3, dtype=torch.float64), group.boxes[:1, :1, :1]
    group.assignment = replace(group.assignment, **{k: torch.zeros(0).long() for k in ("image", "query", "object")})
    nothing = replace(objects[1], exhaustive=torch.tensor([2]))
    expected = {"focal": 0.75 / 4 * 0.6931472, "mal": 0.3535534 * 0.6931472}[kind]
    assert LOSSES[kind](federated(group, [nothing])).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_classes_were_looked_for_it_is_the_loss_of_any_data(kind):
    group, objects = assigned(*CASES["weights"])
    everything = [{0, 1, 2}] * 3, [set()] * 3
    found, plain = LOSSES[kind](federated(group, verified(objects, *everything))), LOSSES[kind](matched(group, objects))
    torch.testing.assert_close(found, plain, rtol=1e-14, atol=1e-14)
    gradients = [torch.autograd.grad(value.sum(), group.logits)[0] for value in (found, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("most", [1, 2**16])
def test_classes_that_nobody_looked_for_do_not_matter_whatever_their_logits(most, monkeypatch):
    """A few logits at a time, or all at once; of padding, images of one and of no class beside one of three."""
    monkeypatch.setattr("models.background.AT_ONCE", {"cpu": most})
    group, objects = assigned(CASES["all"][0], torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64))
    group.penalised = torch.ones(3, 5, dtype=torch.bool)
    group.penalised[0, 2], group.penalised[2, 1] = False, False
    lists = [{0, 1, 2}, {1}, set()], [set(), set(), {0, 1, 2}]
    with torch.no_grad():
        group.logits[:, 1, :, [0, 2]] = float("inf")
    loss = LOSSES["focal"](federated(group, verified(objects, *lists)))
    loss.sum().backward()
    counted = group.logits.detach()[:, :2].clone().requires_grad_()
    alone = replace(group, logits=torch.cat([counted, group.logits.detach()[:, 2:]], 1))
    of_loops = by_loops("focal", alone, objects, *lists)
    left_out = [0.5 * of_background("focal", counted[:, 0, 2]).sum(-1)]  # the query that does not count
    expected = of_loops - sum(left_out)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    expected.sum().backward()
    torch.testing.assert_close(group.logits.grad[:, :2], counted.grad, rtol=1e-11, atol=1e-12)
    assert not group.logits.grad[:, 1, :, [0, 2]].any() and not group.logits.grad[:, 2, [1, 3]].any()


def test_the_criterion_has_it_for_groups_whose_objects_say_it():
    """Proposals of any class have it not: that all objects are listed nobody says. Matching is that of any data."""
    group, objects = assigned(*CASES["all"])
    objects = verified(objects)
    proposals = replace(group, name="proposals", layers=None, objects=class_agnostic(objects))
    proposals.logits, proposals.boxes = group.logits[:1], group.boxes[:1]
    plain = LossConfig(classification="focal")
    found = build_criterion(replace(plain, federated=True))(Predictions([group, proposals]), objects, 5)
    usual = build_criterion(plain)(Predictions([group, proposals]), objects, 5)
    expected = 2 / 5 * by_loops("focal", group, objects)
    torch.testing.assert_close(torch.stack([found["class/decoder.0"], found["class/decoder.1"]]), expected)
    changed = {name for name in usual if not torch.equal(found[name], usual[name])}
    assert changed == {"class/decoder.0", "class/decoder.1"}
    with pytest.raises(ValueError, match=r"needs Objects.exhaustive of every image"):
        build_criterion(replace(plain, federated=True))(
            Predictions([group]), [objects[0], *(replace(o, exhaustive=None) for o in objects[1:])]
        )


def test_nothing_more_waits_for_the_device():
    criterion = build_criterion(LossConfig(federated=True))
    group, objects = assigned(*CASES["weights"])
    objects = verified(objects)
    with count_syncs(DEVICE) as syncs:
        sum(criterion(Predictions([group]), objects, 5).values()).backward()
    assert syncs.total == 0, syncs


def test_it_is_refused_without_a_class_loss():
    with pytest.raises(UserError, match=r"^loss.federated is about the class loss, which loss.class_weight 0 takes"):
        check_model(ModelConfig(), LossConfig(federated=True, class_weight=0.0))
    check_model(ModelConfig(), LossConfig(federated=True))
