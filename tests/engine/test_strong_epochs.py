"""A run with strong augmentations: how many of its epochs have them, and that it resumes to the last bit."""

import pytest
import torch

from datasets.shapes import generate
from engine.training_data import read_data
from main import main
from tests.test_main import SMALL
from util.config import Config, DataConfig, TrainConfig
from util.distributed import ALONE


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "shapes", train=4, val=2, size=64)


def test_the_runs_epochs_decide_which_are_strong(shapes):
    config = Config(data=DataConfig(root=str(shapes), mosaic=0.1), train=TrainConfig(epochs=12))
    train, val, _ = read_data(config, None, ALONE)
    assert train.strong is not None and train.strong_epochs == 6  # also once its files have been looked at
    assert val.strong is None
    config.data.mosaic = 0.0
    assert read_data(config, None, ALONE)[0].strong is None


def test_a_resumed_run_goes_on_to_the_bit(shapes, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    kinds = [f"--data.{kind}=0.6" for kind in ("mosaic", "mixup", "large_scale_jitter", "copy_paste")]
    argv = ["train", "--config", str(tmp_path / "small.yaml"), "--data.root", str(shapes), "--data.strong_until=1"]
    assert main([*argv, *kinds, "--train.output", str(tmp_path / "whole")]) == 0
    first = str(tmp_path / "whole" / "last.1.pth")
    assert torch.load(first, weights_only=True)["epoch"] == 1
    assert main([*argv, *kinds, "--train.output", str(tmp_path / "again"), "--train.resume", first]) == 0
    whole, again, plain = (
        torch.load(tmp_path / name, weights_only=True)["model"] for name in ("whole/last.pth", "again/last.pth", first)
    )
    assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items())
    assert not all(torch.equal(tensor, plain[key]) for key, tensor in whole.items())
