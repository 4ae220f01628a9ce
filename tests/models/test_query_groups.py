"""Groups of queries: each is a detector of its own that shares the decoder."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.from_config import build_criterion
from models.limits import check_model
from models.predictions import Predictions
from tests.models.helpers import padded_batch, random_objects, scramble, small_model
from util.config import BackboneConfig, LossConfig, ModelConfig
from util.errors import UserError


def grouped_model(**options) -> nn.Module:
    backbone = BackboneConfig("test_resnet", "none", frozen_stages=0)
    settings = {"backbone": backbone, "num_queries": 6, "query_groups": 4, "refinement": True} | options
    model = small_model(**settings)
    scramble(model)
    return model.double().eval()


def inputs():
    images, mask = padded_batch([(48, 48), (48, 32)])
    return images.double(), mask, [replace(o, boxes=o.boxes.double()) for o in random_objects([2, 4])]


@pytest.mark.parametrize("two_stage", [False, True])
@torch.no_grad()
def test_each_group_predicts_what_a_detector_with_its_queries_does(two_stage):
    model, (images, mask, objects) = grouped_model(two_stage=two_stage), inputs()
    groups = {group.name: group for group in model(images, mask, objects).groups}
    sources = model.training_queries["groups"].sources
    assert len(sources) == 3
    for number, source in enumerate(sources, 1):
        alone = deepcopy(model)
        alone.queries, alone.training_queries = source, nn.ModuleDict()
        wanted = {group.name: group for group in alone(images, mask, objects).groups}
        names = ["decoder", "proposals"] if two_stage else ["decoder"]
        assert [*wanted] == names
        for name in names:
            found = groups[{"decoder": "group"}.get(name, name) + str(number)]
            torch.testing.assert_close(found.boxes, wanted[name].boxes, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.logits, wanted[name].logits, rtol=1e-9, atol=1e-9)
        difference = groups[f"group{number}"].boxes - groups["decoder"].boxes
        assert difference.abs().max() > 0.01


@pytest.mark.parametrize("two_stage", [False, True])
@torch.no_grad()
def test_losses_are_the_mean_over_groups(two_stage):
    model, (images, mask, objects) = grouped_model(two_stage=two_stage), inputs()
    predictions, criterion = model(images, mask, objects), build_criterion(LossConfig())
    losses = criterion(predictions, objects)
    assert len(losses) == 4 * 3 * (3 if two_stage else 2)
    for group in predictions.groups:
        for name, loss in criterion(Predictions([replace(group, weights=None)]), objects).items():
            torch.testing.assert_close(losses[name], loss / 4, rtol=1e-12, atol=0)


@torch.no_grad()
def test_groups_attend_as_one_batch(monkeypatch):
    """The detector's own queries among them, and whatever comes after them on its own."""
    model, (images, mask, objects), seen = grouped_model(hybrid_queries=5, two_stage=True), inputs(), []
    layer = model.transformer.decoder[0]
    layer.self_attn.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    model(images, mask, objects)
    assert seen == [(2 * 4, 6, 32), (2, 5, 32)]


def test_the_first_proposals_and_their_head_are_not_those_of_the_others():
    model, (images, mask, objects) = grouped_model(two_stage=True), inputs()
    losses = build_criterion(LossConfig())(model(images, mask, objects), objects)
    losses["class/proposals2"].backward()
    taught = {
        name.rpartition(".head.")[0] for name, p in model.named_parameters() if p.grad is not None and ".head." in name
    }
    assert taught == {"training_queries.groups.sources.1"}


def test_no_groups_at_all_are_refused():
    with pytest.raises(UserError, match="query_groups is 0; it must be at least 1"):
        check_model(ModelConfig(query_groups=0))
