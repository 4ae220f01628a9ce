"""A step that is not finite: told with its images, written down, computed again."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import models.denoising
from main import main
from models.denoising import draw_noise
from scripts.replay_batch import main as replay
from tests.datasets.helpers import add_lists
from tests.processes import Launched
from tests.test_main import small_place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = small_place(tmp_path_factory.mktemp("replay"), train=16, val=3)
    add_lists(folder / "shapes" / "annotations" / "instances_train2017.json")
    return folder


def options(place: Path, output: Path, *more: str) -> list[str]:
    common = ("--train.output", output, "--data.root", place / "shapes", "--model.dropout", 0.1)
    return [str(a) for a in ("train", "--config", place / "small.yaml", *common, *more)]


def spoil(at_step: int, of_rank: int, rank: int) -> None:
    """From a step on, one image of the batches of one process is infinitely bright."""
    import datasets.device
    from datasets.device import ToDevice

    normalise, calls = ToDevice.normalise, 0

    def broken(self, images, padding_mask):
        nonlocal calls
        calls += 1
        images = normalise(self, images, padding_mask)
        if rank == of_rank and calls >= at_step:
            images[-1, 0, 5, 5] = float("inf")
        return images

    datasets.device.ToDevice.normalise = broken


@pytest.mark.parametrize("processes", [1, 2])
def test_the_file_computes_the_step_again(place, tmp_path, capsys, processes):
    prepare = partial(spoil, 3, processes - 1)
    # Trained batch norms would carry the infinity into both processes.
    argv = options(place, tmp_path / "run", "--model.backbone.norm", "frozen", "--loss.federated", "true")
    launched = Launched(argv, tmp_path / "log", processes, prepare)
    codes = launched.wait(60)
    assert codes[processes - 1] == 2 and set(codes) <= {2, 3}
    told = launched.printed()
    assert told.count("error:") == 1 and "Traceback" not in told, told
    images = [int(i) for i in re.search(r"images ([\d, ]+);", told)[1].split(", ")]
    assert len(images) == 4 // processes
    file = re.search(r"replay_batch.py (\S+) computes", told)[1]
    assert Path(file).name == f"nonfinite_step3_rank{processes - 1}.pth"

    # The images on file are sound bytes, so without the fault the step is finite, which the script says.
    assert replay([file, "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "the step is finite this time" in printed
    assert all(str(i) in printed for i in images)


def test_weights_that_overflow_are_found_again(place, tmp_path, capsys, monkeypatch):
    """Finite weights whose predictions are not: training and the script see the same, noised objects included."""
    drawn = []
    monkeypatch.setattr(
        models.denoising, "draw_noise", lambda *inputs: drawn.append(draw_noise(*inputs)[1]) or draw_noise(*inputs)
    )
    denoising = ("--model.reference", "box", "--model.denoising_queries", "4")
    assert main(options(place, tmp_path / "first", "--train.epochs", "1", *denoising)) == 0
    content = torch.load(tmp_path / "first" / "last.pth", weights_only=True)
    content["model"]["transformer.encoder.0.ffn.linear2.weight"] *= 1e38
    torch.save(content, tmp_path / "first" / "last.pth")
    capsys.readouterr()
    drawn.clear()
    assert main(["train", "--train.resume", str(tmp_path / "first"), "--train.epochs", "2"]) == 2
    in_training = drawn[-4:]
    drawn.clear()
    told = capsys.readouterr().err
    file = re.search(r"replay_batch.py (\S+) computes", told)[1]
    assert replay([file, "--device", "cpu"]) == 0
    assert len(drawn) == 4 and all(torch.equal(a, b) for a, b in zip(drawn, in_training)) and drawn[0].numel()
    printed = capsys.readouterr().out
    assert "not finite again" in printed and "the first output that is not finite: transformer.encoder.0" in printed
    assert replay([file, "--device", "cpu", "--precision", "fp64"]) in (0, 1)


def test_fp16_gradients_that_overflow_only_lower_the_scale(place, tmp_path):
    """Loss scaling starts at 65536, which is expected to be too much at first; the steps are left out, not fatal."""
    assert main(options(place, tmp_path / "run", "--train.precision", "fp16", "--train.epochs", "1")) == 0
    saved = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    assert saved["scaler"]["scale"] <= 65536 and saved["epoch"] == 1


def test_what_is_no_such_file(place, tmp_path, capsys):
    assert main(options(place, tmp_path / "run", "--train.fast_dev_run")) == 0
    assert replay([str(tmp_path / "run" / "fast_dev_run" / "last.pth")]) == 2
    assert "is no step that was not finite" in capsys.readouterr().err
