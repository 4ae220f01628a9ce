"""Checkpoints that load and are no use: said when they are loaded, not by a detector that finds nothing."""

from dataclasses import asdict

import pytest
import torch

from models.load import load_detector
from tests.models.helpers import small_config, small_model
from util.checkpoint_write import save_checkpoint
from util.config import BackboneConfig, Config
from util.errors import UserError


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    config = Config(model=small_config(backbone=BackboneConfig(name="test_resnet", weights="none")))
    state = small_model(backbone=config.model.backbone).state_dict()
    spoilt = state | {"heads.0.classify.bias": torch.full_like(state["heads.0.classify.bias"], value)}
    categories = [{"label": i, "id": i, "name": str(i)} for i in range(5)]
    saved = {"config": asdict(config), "categories": categories, "epoch": 1, "model": state, "ema": spoilt}
    save_checkpoint(tmp_path / "a.pth", saved)
    assert load_detector(str(tmp_path / "a.pth"), "model").model.num_classes == 5
    with pytest.raises(UserError, match=r"a\.pth' holds NaN or infinite weights in 1 tensors .*classify\.bias"):
        load_detector(str(tmp_path / "a.pth"))
