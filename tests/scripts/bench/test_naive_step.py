"""The naive training step's losses are ours, and so are their gradients."""

import pytest
import torch

from datasets.loader import Target
from models.detector import Predictions, Proposals
from models.from_config import build_criterion
from scripts.bench import naive_step
from tests.models.helpers import random_objects
from util.config import LossConfig


def predictions(layers: int, batch: int, queries: int, two_stage: bool) -> Predictions:
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn((layers, batch, queries, 5), generator=rng, dtype=torch.float64).requires_grad_()
    boxes = torch.rand((layers, batch, queries, 4), generator=rng, dtype=torch.float64).requires_grad_()
    proposals = Proposals(logits[0] * 0.5, boxes[0] * 0.9) if two_stage else None
    return Predictions(logits, boxes, proposals)


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_naive_losses_and_their_gradients_are_ours(two_stage, auxiliary):
    cfg = LossConfig(auxiliary=auxiliary, class_weight=1.5, giou_cost=3.0)
    targets = [Target(o.boxes.double(), o.labels, 1, (64, 96)) for o in random_objects([3, 0, 4])]
    found = []
    for losses_of in (build_criterion(cfg), lambda p, t: naive_step.losses_of(p, t, cfg)):
        predicted = predictions(3, 3, 10, two_stage)
        losses = losses_of(predicted, targets)
        sum(losses.values()).backward()
        found.append((losses, predicted.logits.grad, predicted.boxes.grad))
    (ours, *gradients), (naive, *naive_gradients) = found
    assert naive.keys() == ours.keys()
    for name, loss in ours.items():
        torch.testing.assert_close(naive[name], loss, rtol=1e-5, atol=1e-7)
    for ours, naive in zip(gradients, naive_gradients):
        torch.testing.assert_close(naive, ours, rtol=1e-4, atol=1e-6)
