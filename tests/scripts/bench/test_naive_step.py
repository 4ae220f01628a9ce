"""The naive training step's losses are ours, and so are their gradients."""

from dataclasses import replace

import pytest
import torch

from models.from_config import build_criterion
from models.predictions import PredictionGroup, Predictions
from models.proposals import class_agnostic
from scripts.bench import naive_step
from tests.models.helpers import random_objects
from util.config import LossConfig
from util.objects import Objects


def predictions(layers: int, batch: int, queries: int, objects: list[Objects] | None) -> Predictions:
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn((layers, batch, queries, 5), generator=rng, dtype=torch.float64).requires_grad_()
    boxes = torch.rand((layers, batch, queries, 4), generator=rng, dtype=torch.float64).requires_grad_()
    groups = [PredictionGroup("decoder", logits, boxes, layers=range(layers))]
    if objects is not None:
        groups.append(PredictionGroup("proposals", logits[:1] * 0.5, boxes[:1] * 0.9, class_agnostic(objects)))
    return Predictions(groups)


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize(("auxiliary", "class_weight"), [(False, None), (True, 1.5)])
def test_naive_losses_and_their_gradients_are_ours(two_stage, auxiliary, class_weight):
    cfg = LossConfig(auxiliary=auxiliary, class_weight=class_weight, giou_cost=3.0)
    targets = [replace(o, boxes=o.boxes.double()) for o in random_objects([3, 0, 4])]
    found = []
    for losses_of in (build_criterion(cfg), lambda p, t: naive_step.losses_of(p, t, cfg)):
        predicted = predictions(3, 3, 10, targets if two_stage else None)
        losses = losses_of(predicted, targets)
        sum(losses.values()).backward()
        found.append((losses, predicted.logits.grad, predicted.boxes.grad))
    (ours, *gradients), (naive, *naive_gradients) = found
    assert naive.keys() == ours.keys()
    for name, loss in ours.items():
        torch.testing.assert_close(naive[name], loss, rtol=1e-5, atol=1e-7)
    for ours, naive in zip(gradients, naive_gradients):
        torch.testing.assert_close(naive, ours, rtol=1e-4, atol=1e-6)
