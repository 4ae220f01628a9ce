"""Proposals: their anchors, gradients and objects."""

import pytest
import torch

from models.from_config import build_criterion
from models.memory import Memory
from models.proposals import class_agnostic, token_anchors
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import LossConfig


def test_proposal_coordinates_are_detached_and_proposals_are_penalised():
    model = small_model(two_stage=True, refinement=True)
    scramble(model)
    images, mask = padded_batch([(96, 96)])
    model(images, mask).boxes[-1].sum().backward()
    assert model.queries.head.regress.layers[0].weight.grad is None
    objects = random_objects([2])
    losses = build_criterion(LossConfig())(model(images, mask, objects), objects)
    (losses["l1/proposals"] + losses["class/proposals"]).backward()
    assert model.queries.head.regress.layers[0].weight.grad.abs().sum() > 0
    assert model.queries.head.classify.weight.grad.abs().sum() > 0


def test_token_anchors():
    mask = torch.tensor([[False, False, True, True, False]])
    ratios = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])
    anchors, usable = token_anchors(Memory(torch.empty(1, 5, 0), mask, [(1, 4), (1, 1)], ratios))
    assert anchors[0, :2].flatten().tolist() == pytest.approx([0.25, 0.5, 0.05, 0.05, 0.75, 0.5, 0.05, 0.05])
    assert anchors[0, 4].tolist() == pytest.approx([0.5, 0.5, 0.1, 0.1])
    assert usable[0, :, 0].tolist() == [True, True, False, False, True]
    nothing = torch.zeros(1, 200, dtype=torch.bool)
    far, usable = token_anchors(Memory(torch.empty(1, 200, 0), nothing, [(1, 200)], torch.ones(1, 1, 2)))
    assert not usable[0, 0] and usable[0, 2] and far[0, 1, 0] == pytest.approx(1.5 / 200)


def test_proposals_are_a_group_in_training_alone():
    model = small_model(two_stage=True, refinement=True).eval()
    images, mask = padded_batch([(96, 96)])
    objects = random_objects([3])
    with torch.no_grad():
        alone, trained = model(images, mask), model(images, mask, objects)
    assert [g.name for g in alone.groups] == ["decoder"] and not alone.extra_losses
    assert [g.names for g in trained.groups] == [["decoder.0", "decoder.1"], ["proposals"]]
    assert torch.equal(alone.boxes, trained.boxes)
    assert not trained.groups[1].objects[0].labels.any() and objects[0].labels.any()
    assert torch.equal(trained.groups[1].objects[0].boxes, objects[0].boxes)
    assert class_agnostic(objects)[0].image_id == objects[0].image_id
