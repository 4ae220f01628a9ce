"""Feature mimicking: regions, crops, losses, gradients, and that inference knows nothing of it."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.predict import load_model
from main import main
from models.from_config import build_criterion, build_mimic
from models.mimic import FeatureMimic, WithMimicking, crop_regions, object_regions, still_norms
from tests.models.helpers import padded_batch, random_objects, small_config, small_model
from tests.test_main import small_place
from util.config import LossConfig
from util.errors import UserError
from util.objects import Objects


def detector_and_branch(seed=0, **loss):
    config = small_config()
    config.backbone.name, config.backbone.dcn = "test_resnet", "v2"
    model = small_model(backbone=config.backbone, seed=seed)
    for key, value in model.state_dict().items():
        if "backbone" in key and ".bn" in key and key.endswith("weight"):
            value.fill_(1.0)  # timm starts the last norm of a block at zero, which would hide what is before it
    settings = LossConfig(**{"mimic_weight": 0.1, "mimic_size": 64, **loss})
    return model, build_mimic(settings, config, model), settings


def test_regions_are_the_objects_in_pixels_of_the_padded_images():
    _, mask = padded_batch([(40, 80), (60, 50)])
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]])
    targets = [Objects(boxes[:0], torch.tensor([], dtype=torch.long), 1), Objects(boxes, torch.tensor([3, 1]), 2)]
    regions, labels = object_regions(targets, mask, 32)
    assert torch.allclose(regions, torch.tensor([[1.0, 0, 0, 50, 60], [1, 0, 24, 25, 36]])) and labels.tolist() == [
        3,
        1,
    ]
    regions, labels = object_regions([targets[1], targets[0]], mask, 32)
    assert torch.allclose(regions, torch.tensor([[0.0, 0, 0, 80, 40], [0, 0, 16, 40, 24]]), atol=1e-5)


def test_of_many_objects_some_are_drawn_without_doubles():
    _, mask = padded_batch([(64, 64)] * 2)
    targets = random_objects([9, 2])
    torch.manual_seed(0)
    drawn = [object_regions(targets, mask, 4) for _ in range(20)]
    everything = object_regions(targets, mask, 99)[0].tolist()
    for regions, labels in drawn:
        assert [int(r[0]) for r in regions] == [0, 0, 0, 0, 1, 1] and len(labels) == 6
        assert all(r in everything for r in regions.tolist()) and len({tuple(r) for r in regions.tolist()}) == 6
    assert len({tuple(map(tuple, r.tolist())) for r, _ in drawn}) > 10


def test_crops_are_resized():
    images = torch.randn(2, 3, 40, 50)
    rois = torch.tensor([[1.0, 8, 4, 40, 36], [0, 10, 10, 18, 18]])
    halved, enlarged = crop_regions(images, rois, 16)
    assert torch.allclose(halved, F.avg_pool2d(images[1, :, 4:36, 8:40], 2), atol=1e-5)
    # Inside, where neighbours of the crop are not read, as bilinear resizing is.
    expected = F.interpolate(images[:1, :, 10:18, 10:18], size=16, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(enlarged[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5)


def test_an_image_that_is_its_own_crop_has_nothing_to_learn():
    model, branch, _ = detector_and_branch()
    images, mask = padded_batch([(64, 64), (64, 64)])
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    targets = [Objects(whole, torch.tensor([i]), i) for i in (4, 2)]
    with torch.no_grad():
        losses = WithMimicking(model, branch).eval()(images, mask, targets).extra_losses
    assert losses["mimic/regions"].abs() < 1e-5
    # The same vectors, classified by the two unshared layers.
    branch.classify_region.load_state_dict(branch.classify_crop.state_dict())
    with torch.no_grad():
        losses = WithMimicking(model, branch).eval()(images, mask, targets).extra_losses
    assert torch.allclose(losses["mimic_class/regions"], losses["mimic_class/crops"], atol=1e-5)


def test_the_losses_by_hand(monkeypatch):
    """From the vectors: 1 - cos and cross-entropy, summed over regions, with the weight."""
    model, branch, _ = detector_and_branch()
    images, mask = padded_batch([(64, 80)])
    targets, seen = random_objects([3]), []
    monkeypatch.setattr(FeatureMimic, "_vectors", lambda self, *a, f=FeatureMimic._vectors: keep(seen, f(self, *a)))
    losses = WithMimicking(model, branch)(images, mask, targets).extra_losses
    region, crop = (v.detach().double() for v in seen)
    cosine = (region * crop).sum(1) / (region.square().sum(1) * crop.square().sum(1)).sqrt()
    assert float(losses["mimic/regions"].detach()) == pytest.approx(0.1 * float((1 - cosine).sum()), abs=1e-6)
    for name, vectors, layer in (("regions", region, branch.classify_region), ("crops", crop, branch.classify_crop)):
        logits = vectors @ layer.weight.detach().double().T + layer.bias.detach().double()
        expected = sum(-float(row.log_softmax(0)[label]) for row, label in zip(logits, targets[0].labels))
        assert float(losses[f"mimic_class/{name}"].detach()) == pytest.approx(0.1 * expected, rel=1e-5)


def keep(seen: list, value):
    seen.append(value)
    return value


def test_the_crop_teaches_and_is_taught_by_classes_alone(monkeypatch):
    model, branch, _ = detector_and_branch()
    images, mask = padded_batch([(64, 80)])
    crops = torch.randn(3, 3, 64, 64, requires_grad=True)
    monkeypatch.setattr("models.mimic.crop_regions", lambda *args: crops)
    losses = WithMimicking(model, branch)(images, mask, random_objects([3])).extra_losses
    by_cosine = torch.autograd.grad(
        losses["mimic/regions"],
        [crops, model.backbone.body.layer4[0].conv2.weight],
        retain_graph=True,
        allow_unused=True,
    )
    assert by_cosine[0] is None and by_cosine[1].any()
    assert torch.autograd.grad(losses["mimic_class/crops"], crops)[0].any()


def test_crops_leave_the_statistics_of_norms_alone():
    model, branch, _ = detector_and_branch()
    trained = WithMimicking(model, branch).train()
    images, mask = padded_batch([(64, 64), (48, 64)])
    alone = detector_and_branch()[0].train()
    alone(images, mask)
    trained(images, mask, random_objects([2, 3]))
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(model.get_submodule(n).training for n in norms)
    for key, value in alone.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    with pytest.raises(RuntimeError, match="inside"), still_norms(model):
        assert not any(model.get_submodule(n).training for n in norms)
        raise RuntimeError("inside")
    assert all(model.get_submodule(n).training for n in norms)


def test_losses_add_up_over_micro_batches_and_a_batch_may_have_no_objects():
    model, branch, settings = detector_and_branch()
    trained, criterion = WithMimicking(model, branch).eval(), build_criterion(settings)
    images, mask = padded_batch([(64, 64)] * 3)
    targets = random_objects([2, 0, 3])
    whole = criterion(trained(images, mask, targets), targets, 5)
    parts = [criterion(trained(images[i], mask[i], targets[i]), targets[i], 5) for i in (slice(0, 2), slice(2, 3))]
    for name in whole:
        assert torch.allclose(whole[name], parts[0][name] + parts[1][name], atol=1e-4), name
    assert torch.allclose(whole["mimic/regions"], 1 / 5 * trained(images, mask, targets).extra_losses["mimic/regions"])
    empty = criterion(trained(images[1:2], mask[1:2], targets[1:2]), targets[1:2])
    assert all(empty[name] == 0 for name in empty if "mimic" in name)
    sum(empty.values()).backward()
    assert all(p.grad is not None for p in branch.parameters())  # as processes that share gradients need


def test_a_compiled_backbone_never_sees_an_empty_batch():
    """Inductor has no gradient for one."""
    model, branch, _ = detector_and_branch(mimic_size=32)
    seen, forward = [], model.backbone.forward
    model.backbone.forward = lambda images, mask=None: seen.append(len(images)) or forward(images, mask)
    images, mask = padded_batch([(64, 64)])
    for counts in ([0], [2]):
        WithMimicking(model, branch)(images, mask, random_objects(counts))
    assert seen == [1, 1, 2]


@pytest.mark.slow
def test_mimicking_lowers_its_own_loss():
    """Beside the same training without the cosine, by classes alone, which draws the two vectors apart."""
    ends = {}
    for with_cosine in (True, False):
        model, branch, settings = detector_and_branch()
        trained, criterion = WithMimicking(model, branch).train(), build_criterion(settings)
        images, mask = padded_batch([(64, 64), (64, 80)])
        targets = random_objects([3, 3])
        optimizer, cosines = torch.optim.Adam(trained.parameters(), 1e-3), []
        for _ in range(25):
            losses = criterion(trained(images, mask, targets), targets)
            cosines.append(losses["mimic/regions"].item())
            optimizer.zero_grad()
            wanted = "mimic" if with_cosine else "mimic_class"
            sum(v for k, v in losses.items() if k.startswith(wanted)).backward()
            optimizer.step()
        ends[with_cosine] = sum(cosines[10:])  # single steps swing, with the number of threads, too
    assert ends[True] < 0.5 * ends[False], ends


def test_it_needs_a_deformable_backbone():
    with pytest.raises(UserError, match=r"add --model.backbone.dcn v2"):
        build_mimic(LossConfig(mimic_weight=0.1), small_config(), small_model())
    assert build_mimic(LossConfig(), small_config(), small_model()) is None


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return small_place(tmp_path_factory.mktemp("mimic"), train=12, val=4)


def train(place: Path, output: str, *more: object) -> int:
    options = ["--config", place / "small.yaml", "--data.root", place / "shapes", "--train.log_every", 1]
    argv = ["train", *options, "--train.output", place / output, "--model.backbone.dcn", "v2", *more]
    return main([str(a) for a in argv])


def test_trained_resumed_and_left_behind(place, capsys):
    mimic = ("--loss.mimic_weight", 0.1, "--loss.mimic_size", 32)
    assert train(place, "without", "--train.epochs", 1) == 0
    assert train(place, "whole", *mimic, "--train.epochs", 2) == 0
    assert "feature mimicking 0.1" in capsys.readouterr().out
    assert train(place, "half", *mimic, "--train.epochs", 1) == 0
    assert train(place, "half", *mimic, "--train.epochs", 2, "--train.resume", "auto") == 0
    found = {n: torch.load(place / n / "last.pth", weights_only=True) for n in ("without", "whole", "half")}
    for part in ("model", "branch"):
        assert all(torch.equal(v, found["half"][part][k]) for k, v in found["whole"][part].items()), part
    lines = [json.loads(line) for line in (place / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["mimic/regions"] > 0 for line in lines if line["kind"] == "train")

    # The model that is left is the one without: its keys, its modules, its operations.
    assert found["without"]["branch"] is None
    assert {k: v.shape for k, v in found["whole"]["model"].items()} == {
        k: v.shape for k, v in found["without"]["model"].items()
    }
    with_it, without = (load_model(str(place / n))[0] for n in ("whole", "without"))
    assert str(with_it) == str(without)

    capsys.readouterr()
    assert train(place, "half", "--train.epochs", 3, "--train.resume", "auto") == 0  # the checkpoint says it mimics
    assert train(place, "half", "--loss.mimic_weight", 0, "--train.epochs", 4, "--train.resume", "auto") == 2
    assert "was trained with feature mimicking" in capsys.readouterr().err
    assert train(place, "without", *mimic, "--train.epochs", 3, "--train.resume", "auto") == 2
    assert "was trained without feature mimicking" in capsys.readouterr().err
