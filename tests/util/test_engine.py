"""The training step: accumulation is exact, the rate is set, losses are means, clipping clips."""

import pytest
import torch

from datasets.loader import Batch, Target
from models.build import build_criterion
from tests.models.helpers import padded_batch, random_objects, small_model
from util.config import LossConfig
from util.engine import pick_device, train_one_epoch
from util.errors import UserError

CPU = torch.device("cpu")


def batch_of(counts: list[int], seed: int = 0) -> Batch:
    images, mask = padded_batch([(48, 64)] * len(counts), seed)
    targets = [Target(o.boxes.double(), o.labels, o.image_id, (48, 64)) for o in random_objects(counts, seed=seed)]
    return Batch(images.double(), mask, targets)


def split(batch: Batch, size: int) -> list[Batch]:
    parts = [slice(i, i + size) for i in range(0, len(batch.targets), size)]
    return [Batch(batch.images[s], batch.padding_mask[s], batch.targets[s]) for s in parts]


def trained(micro: int, clip_norm: float = 0.0) -> tuple[dict, dict, list]:
    """Three steps of plain SGD in float64 on the same four images a step, in micro-batches of `micro`."""
    model = small_model(refinement=True).double()
    for module in model.modules():  # batch statistics are the one thing that accumulation changes
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats, module.momentum = True, 0.0
            module.forward = lambda x, m=module: torch.nn.functional.batch_norm(
                x, m.running_mean, m.running_var, m.weight, m.bias, training=False, eps=m.eps
            )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    criterion, logged = build_criterion(LossConfig()), []
    steps = [split(batch_of([3, 0, 1, 2], seed), micro) for seed in range(3)]
    figures = train_one_epoch(
        model,
        criterion,
        steps,
        3,
        optimizer,
        lambda step: None,
        CPU,
        clip_norm=clip_norm,
        on_step=lambda s, m: logged.append((s, m)),
        log_every=2,
    )
    return model.state_dict(), figures, logged


def test_accumulation_is_exact():
    whole, figures, _ = trained(4)
    for micro in (1, 2, 3):
        parts, figures_of_parts, _ = trained(micro)
        assert figures_of_parts["loss"] == pytest.approx(figures["loss"], rel=1e-9)
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, atol=1e-9, rtol=1e-7)


def test_losses_are_means_and_are_logged():
    _, figures, logged = trained(4)
    assert [step for step, _ in logged] == [2, 3]
    means = (2 * logged[0][1]["loss"] + logged[1][1]["loss"]) / 3
    assert figures["loss"] == pytest.approx(means)
    parts = sum(v for k, v in figures.items() if k.startswith(("class/", "l1/", "giou/")))
    assert figures["loss"] == pytest.approx(parts)


def test_clipping_bounds_the_step():
    start = small_model(refinement=True).double().state_dict()
    end, figures, _ = trained(4, clip_norm=0.01)
    moved = sum((end[k] - start[k]).double().square().sum() for k in end if start[k].is_floating_point()).sqrt()
    assert figures["grad_norm"] > 1
    assert moved <= 3 * 1e-3 * 0.01 * 1.001


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "meta"])
def test_a_device_that_cannot_be_used(name):
    with pytest.raises(UserError, match=name):
        pick_device(name)
