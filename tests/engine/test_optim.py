"""Learning rates by hand, parameter groups of the recipe."""

import pytest
import torch

from engine.optim import adamw, lr_factor, set_lr
from tests.models.helpers import small_model


def test_step_schedule():
    factors = [lr_factor(step, 10, 50, "step", [40, 45]) for step in (0, 399, 400, 449, 450, 499)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_schedule_and_warmup():
    assert lr_factor(0, 10, 10, "cosine") == pytest.approx(1)
    assert lr_factor(50, 10, 10, "cosine") == pytest.approx(0.505)
    assert lr_factor(100, 10, 10, "cosine") == pytest.approx(0.01)
    assert [lr_factor(s, 10, 50, "step", [40], 4) for s in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


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
