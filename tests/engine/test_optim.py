"""Learning rates by hand, parameter groups of the recipe."""

import pytest
import torch

from engine.optim import adamw, lr_factor, set_lr
from models.limits import check_rates
from tests.models.helpers import small_model
from util.config import BackboneConfig, TrainConfig
from util.errors import UserError


def test_step_schedule():
    factors = [lr_factor(step, 10, 50, "step", [40, 45]) for step in (0, 399, 400, 449, 450, 499)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_schedule_and_warmup():
    assert lr_factor(0, 10, 10, "cosine") == pytest.approx(1)
    assert lr_factor(50, 10, 10, "cosine") == pytest.approx(0.505)
    assert lr_factor(100, 10, 10, "cosine") == pytest.approx(0.01)
    assert [lr_factor(s, 10, 50, "step", [40], 4) for s in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_flat_cosine_by_hand():
    """Of 100 steps the first 60 are flat; a quarter of a cosine's half period later it is cos(pi / 4), ..."""
    of = {step: lr_factor(step, 10, 10, "flat_cosine", flat_share=0.6) for step in (0, 59, 60, 70, 80, 90, 100, 120)}
    assert of == pytest.approx(
        {0: 1, 59: 1, 60: 1, 70: 0.01 + 0.99 * (1 + 2**-0.5) / 2, 80: 0.505, 90: 0.01 + 0.99 * (1 - 2**-0.5) / 2}
        | {100: 0.01, 120: 0.01}
    )
    assert [lr_factor(s, 10, 10, "flat_cosine") for s in (49, 75)] == pytest.approx([1, 0.505])  # half of it by default
    warm = [lr_factor(s, 10, 10, "flat_cosine", (), 4) for s in range(5)]
    assert warm == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert lr_factor(30, 10, 10, "flat_cosine", flat_share=0) == lr_factor(30, 10, 10, "cosine")
    assert lr_factor(99, 10, 10, "flat_cosine", flat_share=1) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flat_share": 0.7}, "train.flat_share says when train.schedule flat_cosine begins to fall; with step it"),
        ({"layer_decay": 0.8, "freeze": ["backbone"]}, "train.layer_decay is about the backbone, which train.freeze"),
    ],
)
def test_rates_that_do_nothing_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        check_rates(TrainConfig(**options))


def test_layer_decay_by_hand():
    """A transformer of six blocks, whose last one learns at the backbone's rate; the pyramid on it starts anew."""
    backbone = BackboneConfig(name="test_vit", weights="none", frozen_stages=2)
    model = small_model(backbone=backbone)
    optimizer = adamw(model, 2e-4, 1e-4, 0.1, 1e-4, layer_decay=0.5)
    rate_of = {id(p): g["base_lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rate_of) == sum(p.requires_grad for p in model.parameters())
    seen = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone.body.model.blocks."):
            block = int(name.split(".")[4])
            assert rate_of[id(parameter)] == pytest.approx(1e-4 * 0.5 ** (5 - block))
            seen.add(block)
        elif name.startswith("backbone."):
            assert name.startswith("backbone.pyramid.") and rate_of[id(parameter)] == 2e-4
    assert seen == {1, 2, 3, 4, 5}
    assert optimizer.param_groups[-1]["name"] == "rest"  # whose rate the log has
    set_lr(optimizer, 0.1)
    assert min(g["lr"] for g in optimizer.param_groups) == pytest.approx(1e-5 * 0.5**4)


def test_groups_of_the_recipe():
    model = small_model()
    model.backbone.body.conv1[0].weight.requires_grad_(False)
    optimizer = adamw(model, 2e-4, 2e-5, 0.1, 1e-4)
    rate_of = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in rate_of
        elif name.startswith("backbone."):
            assert rate_of[id(parameter)] == 2e-5
        elif "sampling_offsets" in name or "reference_points" in name:
            assert rate_of[id(parameter)] == pytest.approx(2e-5)
        else:
            assert rate_of[id(parameter)] == 2e-4
    assert len(rate_of) == sum(p.requires_grad for p in model.parameters())
    assert all(g["weight_decay"] == 1e-4 for g in optimizer.param_groups)
    set_lr(optimizer, 0.1)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([2e-6, 2e-6, 2e-5])
    assert isinstance(optimizer, torch.optim.AdamW)
