"""Predictions and objects of crowds, and how long matching and losses of them take."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.predictions import PredictionGroup, Predictions
from models.proposals import class_agnostic
from util.objects import Objects


def make_batch(
    images: int, queries: int, objects: int, layers: int, tokens: int, classes: int
) -> tuple[Predictions, list[Objects]]:
    """Predictions of a decoder, and of proposals if there are tokens, and so many objects in each image."""
    rng = torch.Generator().manual_seed(0)

    def boxes(*shape: int) -> Tensor:
        centres, sizes = (torch.rand(*shape, 2, generator=rng) for _ in range(2))
        return torch.cat([0.1 + 0.8 * centres, 0.01 + 0.15 * sizes], -1)

    def group(name: str, count: int, of: int, **more) -> PredictionGroup:
        logits = torch.randn(count, images, of, classes, generator=rng) - 3
        return PredictionGroup(name, logits.requires_grad_(), boxes(count, images, of).requires_grad_(), **more)

    truth = [Objects(boxes(objects), torch.randint(classes, (objects,), generator=rng), i) for i in range(images)]
    groups = [group("decoder", layers, queries, layers=range(layers))]
    if tokens:
        groups.append(group("proposals", 1, tokens, objects=class_agnostic(truth)))
    return Predictions(groups), truth


def spent(call: Callable[[], object], least: float = 0.2) -> float:
    """The processor's seconds of a call, the mean of as many as take that long together."""
    begun, calls = time.process_time(), 0
    while not calls or time.process_time() - begun < least:
        call()
        calls += 1
    return (time.process_time() - begun) / calls
