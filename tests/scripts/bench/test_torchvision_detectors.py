"""torchvision's detector gets this project's images and objects as they are, and gives detections that are scored."""

import json

import pytest
import torch

from datasets.batch import Batch
from datasets.shapes import generate
from models.from_config import build_backbone
from scripts.bench import learning, torchvision_detectors, torchvision_models
from scripts.bench.torchvision_models import MAPS, TorchvisionDetector, pick, targets_of, unpadded_sizes
from util.config import BackboneConfig
from util.objects import Objects

TINY = ["--model.backbone.name=test_resnet", "--model.backbone.weights=none", "--data.crop=false"]
TINY += ["--data.train_sizes=[48]", "--data.eval_size=48", "--data.max_size=64", "--data.workers=0"]
TINY += ["--train.batch_size=2", "--train.warmup_steps=2", "--train.ema_decay=0.5", "--train.device=cpu"]
FEW = ["--rois", "8", "--proposals", "10"]


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """A pyramid of few channels: most of the time would go into 13 million weights of the second stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision_models, "WIDTH", 64)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = generate(tmp_path_factory.mktemp("shapes"), train=4, val=2, size=48)
    return [*TINY, f"--data.root={root}"]


@pytest.fixture(scope="module")
def detector(narrow):
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("test_resnet", "none"), MAPS["faster_rcnn"])
    return TorchvisionDetector(backbone, 3, "faster_rcnn", 64, rois=8, proposals=10)


@pytest.fixture
def padded():
    """A batch of an image of 40x64 and one of 64x32, both padded to 64x64."""
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[0, :40], mask[1, :, :32] = False, False
    images = torch.rand(2, 3, 64, 64).masked_fill(mask[:, None], 0.0)
    boxes = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.0, 0.5]])
    objects = [Objects(boxes, torch.tensor([2, 0]), 1), Objects(boxes[:0], torch.tensor([], dtype=torch.long), 2)]
    return Batch(images, mask, objects, [(80, 128), (64, 32)])


def test_a_run_is_recorded_like_any_other(data, tmp_path, capsys):
    file = tmp_path / "rcnn.json"
    assert torchvision_detectors.main(["--json", str(file), "--steps", "3", *FEW, "--", *data]) == 0
    record = json.loads(file.read_text())
    assert (record["steps"], record["images"]) == (3, 6) and record["final"]["weights"] == "EMA"
    assert [look["step"] for look in record["looks"]] == [1, 2, 3]
    (log,) = record["logs"]
    assert set(log["losses"]) == {"loss", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert log["losses"]["loss"] > 0 and record["ms_per_step"] > 0
    assert learning.main(["table", str(file)]) == 0
    assert "| faster_rcnn | 1 | 3 | 0." in capsys.readouterr().out
    assert learning.main(["plot", str(file), "--png", str(tmp_path / "rcnn.png")]) == 0


@pytest.mark.parametrize("clock", ["--minutes", "--cpu-minutes"])
def test_minutes_end_a_run(data, tmp_path, clock):
    file = tmp_path / "rcnn.json"
    assert torchvision_detectors.main(["--json", str(file), clock, "0.0001", *FEW, "--", *data]) == 0
    record = json.loads(file.read_text())
    assert record["steps"] == 1 and record["looks"][-1]["step"] == 1 and "AP50" in record["final"]


@pytest.mark.parametrize(
    ("kind", "losses"),
    [
        ("retinanet", {"classification", "bbox_regression"}),
        ("fcos", {"classification", "bbox_regression", "bbox_ctrness"}),
    ],
)
def test_one_stage_detectors(data, tmp_path, kind, losses):
    file = tmp_path / f"{kind}.json"
    options = ["--detector", kind, "--json", str(file), "--steps", "1", "--", *data]
    assert torchvision_detectors.main(options) == 0
    record = json.loads(file.read_text())
    assert set(record["logs"][0]["losses"]) == {"loss", *losses} and record["final"]["AP"] >= 0
    assert record["name"] == kind and record["cpu_seconds"] > 0


def test_only_the_time(data, capsys):
    assert torchvision_detectors.main(["--time-only", "1", *FEW, "--", *data]) == 0
    assert "ms a step, median of 1" in capsys.readouterr().out


def test_images_reach_the_backbone_as_they_are(detector, padded):
    seen = []
    handle = detector.detector.backbone.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    detector.train().losses(padded.images, padded)
    detector.eval()(padded.images, padded.padding_mask)
    handle.remove()
    assert all(torch.equal(images, padded.images) for images in seen) and len(seen) == 2


def test_objects_are_in_pixels_and_labels_from_one(padded):
    sizes = unpadded_sizes(padded.padding_mask)
    assert sizes == [(40, 64), (64, 32)]
    full, empty = targets_of(padded, sizes, torch.device("cpu"))
    assert full["boxes"].tolist() == [[24.0, 10.0, 40.0, 30.0]] and full["labels"].tolist() == [3]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,)


def test_detections_are_in_pixels_of_the_file():
    found = {"boxes": torch.tensor([[24.0, 10.0, 40.0, 30.0], [0.0, 0.0, 1.0, 1.0]])}
    found |= {"scores": torch.tensor([0.75, 0.5]), "labels": torch.tensor([3, 1])}
    (best,) = pick([(found, (40, 64))], [(80, 256)], top_k=1)
    assert best.boxes.tolist() == [[96.0, 20.0, 160.0, 60.0]]
    assert best.scores.tolist() == [0.75] and best.labels.tolist() == [2]


def test_objects_come_back_as_they_were_given(padded):
    """As if the second stage found its targets: in pixels of the file, with the label of the project."""
    sizes = unpadded_sizes(padded.padding_mask)
    targets = targets_of(padded, sizes, torch.device("cpu"))
    found = [({**t, "scores": torch.ones(len(t["labels"]))}, size) for t, size in zip(targets, sizes)]
    first, second = pick(found, padded.sizes)  # the first file is twice as large
    assert first.boxes.tolist() == [[48.0, 20.0, 80.0, 60.0]] and first.labels.tolist() == [2]
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--steps"),
        (["--steps", "3"], "--json"),
        (["--steps", "0", "--json", "no.json"], "--steps"),
        (["--time-only", "1", "--", "--train.precision", "fp16"], "fp16"),
        (["--time-only", "1", "--", "--data.rot", "x"], "data.root"),
    ],
)
def test_bad_options_are_one_sentence(capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        torchvision_detectors.main(options)
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
