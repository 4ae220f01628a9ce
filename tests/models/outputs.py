"""Random predictions for tests of matching and losses."""

import torch

from models.predictions import PredictionGroup, Predictions
from models.proposals import class_agnostic
from util.objects import Objects


def decoder(logits, boxes, **more) -> PredictionGroup:
    return PredictionGroup("decoder", logits, boxes, layers=range(len(logits)), **more)


def random_group(generator, *shape, classes=5, dtype=torch.float64):
    logits = torch.randn(*shape, classes, generator=generator, dtype=dtype)
    return logits, torch.rand(*shape, 4, generator=generator, dtype=dtype) * 0.5 + 0.2


def predictions(layers=3, batch=3, queries=7, seed=0, dtype=torch.float64) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions([decoder(*random_group(generator, layers, batch, queries, dtype=dtype))])


def two_stages(targets: list[Objects], tokens: int) -> Predictions:
    """With proposals, whose objects have no class."""
    proposals = random_group(torch.Generator().manual_seed(1), 1, len(targets), tokens)
    out = predictions(batch=len(targets))
    return Predictions([*out.groups, PredictionGroup("proposals", *proposals, class_agnostic(targets))])
