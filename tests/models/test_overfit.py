"""Each preset, at its full size, learns one batch by heart. Minutes each: marked slow."""

import pytest
import torch

from datasets.batch import Batch, collate
from datasets.dataset import CocoDetection
from datasets.device import ToDevice
from datasets.shapes import generate
from datasets.transforms import eval_transform
from engine.optim import adamw, set_lr
from models.from_config import build_criterion, build_model
from tests.models.test_from_config import TRAINABLE, preset
from util.config import IMAGENET_MEAN, IMAGENET_STD, LossConfig, ModelConfig


def overfit(config: ModelConfig, batch: Batch, num_classes: int, auxiliary: bool, steps: int = 200) -> list[float]:
    """Losses of training on one batch over and over, until a tenth of the first; norms are trained, from scratch."""
    torch.manual_seed(0)
    config.backbone.norm, config.backbone.frozen_stages, config.dropout = "trainable", 0, 0.0
    model = build_model(config, num_classes, LossConfig(auxiliary=auxiliary)).train()
    criterion = build_criterion(LossConfig(auxiliary=auxiliary))
    optimizer = adamw(model, 2e-4, 2e-4, 1.0, 1e-4)
    losses = []
    while len(losses) < steps and (not losses or losses[-1] > 0.1 * losses[0]):
        set_lr(optimizer, min(1.0, (len(losses) + 1) / 20))
        loss = sum(criterion(model(batch.images, batch.padding_mask, batch.objects), batch.objects).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("auxiliary", [True, False], ids=["auxiliary", "last_only"])
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_preset_overfits_one_batch(name, auxiliary, tmp_path):
    root = generate(tmp_path / "shapes", train=2, val=1)
    annotations = root / "annotations" / "instances_train2017.json"
    dataset = CocoDetection.from_file(root / "train2017", annotations, eval_transform(96, 160))
    batch = ToDevice(torch.device("cpu"), IMAGENET_MEAN, IMAGENET_STD)(collate([dataset[0], dataset[1]]))
    losses = overfit(preset(name), batch, 3, auxiliary)
    assert losses[-1] < 0.1 * losses[0], f"{losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps"
