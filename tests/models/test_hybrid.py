"""Hybrid matching: which queries, which objects, how much."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.from_config import build_criterion
from models.hybrid import HybridQueries
from models.limits import check_model
from models.predictions import Predictions
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig, ModelConfig
from util.errors import UserError

LOSS = LossConfig(hybrid_repeats=3, hybrid_weight=0.7)


def hybrid_model(**options) -> nn.Module:
    backbone = BackboneConfig("test_resnet", "none", frozen_stages=0)
    settings = {"backbone": backbone, "num_queries": 6, "hybrid_queries": 8, "refinement": True} | options
    model = small_model(loss=LOSS, **settings)
    scramble(model)
    return model.double().eval()


def inputs(size: int = 48):
    images, mask = padded_batch([(size, size)] * 2)
    return images.double(), mask, [replace(o, boxes=o.boxes.double()) for o in random_objects([2, 4])]


@pytest.mark.parametrize("two_stage", [False, True])
@torch.no_grad()
def test_losses_are_those_of_objects_repeated(two_stage):
    """As in the paper's code: objects so many times over, and divided by so many more. 12 of them, for 8 queries."""
    model, (images, mask, objects) = hybrid_model(two_stage=two_stage), inputs()
    predictions, criterion = model(images, mask, objects), build_criterion(LOSS)
    losses = criterion(predictions, objects)
    (hybrid,) = [group for group in predictions.groups if group.name == "hybrid"]
    many = [replace(o, boxes=o.boxes.repeat(3, 1), labels=o.labels.repeat(3)) for o in objects]
    wanted = criterion(Predictions([replace(hybrid, repeats=1, weights=None)]), many)
    assert len(wanted) == 6
    for name, loss in wanted.items():
        torch.testing.assert_close(losses[name], 0.7 * loss, rtol=1e-12, atol=0)


@torch.no_grad()
def test_they_start_from_the_next_proposals():
    model, (images, mask, objects) = hybrid_model(two_stage=True), inputs()
    seen = []
    model.training_queries["hybrid"].register_forward_hook(lambda module, args, more: seen.append((args[1], more)))
    predictions = model(images, mask, objects)
    (queries, more), (proposals,) = seen[0], [g for g in predictions.groups if g.name == "proposals"]
    ranked = proposals.logits[0, ..., 0].argsort(dim=1, descending=True)
    boxes = proposals.boxes[0].gather(1, ranked[..., None].expand(-1, -1, 4))
    assert torch.equal(queries.reference, boxes[:, :6]) and torch.equal(more.reference, boxes[:, 6:14])


@pytest.mark.parametrize(("own", "left"), [(45, 4), (49, 0), (60, 0)])
def test_a_small_memory_leaves_fewer_or_none(own, left):
    model, (images, mask, objects) = hybrid_model(two_stage=True, num_queries=own), inputs()  # 36 + 9 + 4 tokens
    predictions = model(images, mask, objects)
    (hybrid,) = [group for group in predictions.groups if group.name == "hybrid"]
    assert hybrid.boxes.shape[2] == left
    losses = build_criterion(LOSS)(predictions, objects)
    assert "l1/hybrid.1" in losses and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("own", "left"), [(45, 4), (60, 0)])
def test_learned_content_goes_by_rank(own, left):
    model, (images, mask, objects) = hybrid_model(two_stage=True, num_queries=own), inputs()
    content = nn.Parameter(torch.randn(8, 32, dtype=torch.float64))
    hybrid, seen = HybridQueries(8, 3, 0.7, content=content), []
    hybrid.register_forward_hook(lambda module, args, more: seen.append(more))
    model.training_queries = nn.ModuleDict({"hybrid": hybrid})
    sum(build_criterion(LOSS)(model(images, mask, objects), objects).values()).backward()
    assert torch.equal(seen[0].content, content[:left].expand(2, -1, -1))
    assert content.grad is not None and content.grad[:left].any(1).all() and not content.grad[left:].any()


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        ({"hybrid_queries": -1}, {}, "hybrid_queries is -1"),
        ({"hybrid_queries": 9}, {"hybrid_weight": 0.0}, "without losses"),
        ({}, {"hybrid_repeats": 5}, "loss.hybrid_repeats is about hybrid queries"),
        ({}, {"hybrid_weight": 0.5}, "loss.hybrid_weight is about hybrid queries"),
    ],
)
def test_what_does_nothing_is_refused(model, loss, message):
    with pytest.raises(UserError, match=message):
        check_model(ModelConfig(**model), LossConfig(**loss))
